"""What long test runs have done so far, kept outside the checkout so that a run goes on where it was cut off.

One JSON object a line in `~/.cache/imageprepull/journal/<name>.jsonl` (the folder follows IMAGEPREPULL_CACHE). A line
that was cut in the middle counts as not written.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PASSED = "passed"


def folder() -> Path:
    cache = os.environ.get("IMAGEPREPULL_CACHE") or Path("~/.cache/imageprepull").expanduser()
    return Path(cache) / "journal"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a run: `examples` made with `seed` on `commit`. `outcome` is `PASSED`, or what was found.

    `detail` is for whoever adds up.
    """

    commit: str
    seed: int
    examples: int
    outcome: str
    seconds: float
    at: float
    detail: str = ""


class Journal:
    """The chunks of one kind of run."""

    def __init__(self, name: str, directory: Path | None = None) -> None:
        self.path = (directory or folder()) / f"{name}.jsonl"

    def __iter__(self) -> Iterator[Chunk]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                yield Chunk(**json.loads(line))

    def add(self, chunk: Chunk) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # On a line of its own, whatever a killed run left.
            file.write("\n" * self._is_cut() + json.dumps(asdict(chunk)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def done(self, commit: str) -> dict[int, Chunk]:
        """What was done on a commit, by seed; the last word counts."""
        return {chunk.seed: chunk for chunk in self if chunk.commit == commit}

    def _is_cut(self) -> bool:
        return self.path.exists() and self.path.read_bytes()[-1:] not in {b"", b"\n"}


def commit_of(checkout: Path) -> str:
    """The commit that is tested, with "-dirty" and the hour when there are changes beside it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return f"{found}-{time.strftime('%Y%m%dT%H')}" if found.endswith("-dirty") else found
