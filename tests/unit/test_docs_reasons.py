"""Every reason that a status, an Event or a command can give is explained in docs/reasons.md, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import imageprepull

SOURCES = Path(imageprepull.__file__).parent
DOCS = Path(__file__).parents[2] / "docs" / "reasons.md"
WORD = re.compile(r"[A-Z][A-Za-z]*[a-z][A-Za-z]*")

# However a reason is declared, it is such a word in some string. These are such words and no reasons.
NO_REASONS = {
    "states and choices of our two kinds, which their schemas describe": """
        Absent Always Applied Continuous Delete Downloaded Downloading Exhausted Exists Extracted Extracting Failed Held
        IfNotPresent Never Once Open Paused Present Ready Retain Unknown Unpin Waiting WhileReferenced
        Reconciling""",
    "phases of a pull, which `imageprepull pull` shows": """
        Done Finishing KeepingBlobs PullingByRuntime Verifying""",
    "words of the Kubernetes API": """
        Background ConfigMap CustomResourceDefinition DeleteOptions Deployment DiskPressure DoesNotExist Equal Established
        Event Gt ImagePrepull In Job Lease Lt Namespace NoExecute NoSchedule Node NodePrepull Normal NotIn Pod
        PreferNoSchedule Status True False Warning BearerToken""",
    "errors of the Kubernetes API, which only logs have": """
        NoToken NotAnApiAnswer Unreachable WatchSilent""",
    "words of HTTP, of registries and of object stores": """
        Accept Authorization Location Range RequestLimitExceeded SlowDown ThrottlingException""",
    "what a caller can do about an error": """
        Credentials Permanent Temporary""",
    "names in containerd's configuration": """
        DiscardUnpackedLayers RegistryConfigPath""",
    "what is tried again at once with more memory, and reaches nobody": "WiderWindow MoreDirectories",
    "units of bytes": "Gi Ki Mi Ti",
    "types, in annotations and in __all__": """
        Answer Any Change Informer Mount RpcFailure SnapshotInfo SnapshotKind Snapshots Timings Usage WorkerDied Workers""",
}


def words_in_code() -> dict[str, str]:
    """Each word that is a whole string somewhere, and where."""
    found: dict[str, str] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        if "protos" in path.parts:
            continue  # generated.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
                found.setdefault(node.value, f"{path.relative_to(SOURCES)}:{node.lineno}")
    return found


def explained() -> list[str]:
    """The words in the first column of the tables."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])]


def no_reasons() -> set[str]:
    return {word for words in NO_REASONS.values() for word in words.split()}


def test_each_reason_is_explained_once() -> None:
    code, known = words_in_code(), explained()
    forgotten = {word: place for word, place in code.items() if word not in {*known, *no_reasons()}}
    assert forgotten == {}, "explain them in docs/reasons.md, or say above what they are"
    assert sorted(known) == sorted(set(known))


def test_no_word_is_explained_or_excepted_that_the_code_does_not_have() -> None:
    code = words_in_code()
    assert [word for word in explained() if word not in code] == []
    assert [word for word in no_reasons() if word not in code] == []
    assert no_reasons().isdisjoint(explained())


def test_reasons_are_found_however_they_are_declared() -> None:
    """As an argument, a class's attribute, a constant, in a table and in a tuple."""
    found = words_in_code()
    assert found.keys() >= {"DamagedContent", "RuntimeTimeout", "NodeDiskPressure"}
    assert found.keys() >= {"RequestRefused", "CertificateNotTrusted", "InvalidSpec", "RuntimeStalled"}


def test_rows_say_what_a_reason_means_and_link_to_headings_that_exist() -> None:
    text = DOCS.read_text()
    for row in (line for line in text.splitlines() if line.startswith("| `")):
        assert all(len(cell.strip()) > 3 for cell in row.strip("|").split("|")), row
    for file, anchor in re.findall(r"\]\((\w+\.md)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (DOCS.parent / file).read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{file}#{anchor}"
