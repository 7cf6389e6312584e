"""Layers made up by hypothesis: few names, so that entries meet, replace and hide each other."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.containerd.differential.layers import (
    DOCKER_TAR,
    OCI_GZIP,
    OCI_TAR,
    OCI_ZSTD,
    Chain,
    Layer,
    gzipped,
    skippable,
    zstd,
)
from tests.containerd.differential.tarbytes import (
    END,
    GNU,
    USTAR,
    V7,
    entry,
    global_header,
    gnu_name,
    tar,
)

NAMES = st.sampled_from(["a", "b", "c", "a", "b", "d"])
ODD = st.sampled_from([".", "..", "", ".wh.a", ".wh.b", ".wh..wh..opq", "\udcff", "e" * 110, ".hidden"])
COMPONENTS = st.one_of(NAMES, NAMES, NAMES, NAMES, NAMES, ODD)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
ENTRY_PATHS = st.builds(
    lambda front, path, back: front + path + back,
    st.sampled_from(["", "", "", "", "./", "/", "../"]),
    PATHS,
    st.sampled_from(["", "", "", "", "/"]),
)
PLAIN_PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MARKERS = st.one_of(
    st.builds(lambda path: f"{path}/.wh..wh..opq", PLAIN_PATHS),
    st.builds(lambda path, name: f"{path}/.wh.{name}", PLAIN_PATHS, NAMES),
    st.builds(lambda name: f".wh.{name}", NAMES),
    st.just(".wh..wh..opq"),
)
TARGETS = st.one_of(
    PLAIN_PATHS,
    st.builds(
        lambda front, path: front + path, st.sampled_from(["/", "../", "../../", "./", "a/../", ""]), PATHS
    ),
)
MODES = st.one_of(
    st.sampled_from([0o644, 0o755, 0o755, 0o2775, 0o1777, 0o4755, 0, 0o7777]), st.integers(0, 0o177777)
)
OWNERS = st.one_of(
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1000, 1000, 50, 50, (1 << 32) - 1, -1, 1 << 32]),
    st.integers(0, 1 << 33),
)
TIMES = st.one_of(
    st.sampled_from([0, 1, -1, 1_000_000_000, 1_400_000_000, 1 << 31, 9_223_372_037]),
    st.integers(0, 1_600_000_000),
)
KINDS = st.sampled_from("000000555555222111" + "3446" + "g" + "\0" + "7")
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "trusted.x", "security.y", "nonsense"]),
    st.sampled_from(["", "1", "value"]),
    min_size=1,
    max_size=2,
)
FRACTIONS = st.sampled_from(
    ["1300000000.5", "1200000000.123456789", "-3.5", "0", "1400000000", "", "9223371974719179008"]
)


@st.composite
def records(draw: st.DrawFn) -> dict[str, str]:
    """PAX records beside attributes: times, owner, path, and what means nothing."""
    found: dict[str, str] = {}
    for key, values in {
        "mtime": FRACTIONS,
        "atime": FRACTIONS,
        "uid": st.sampled_from(["0", "7", "4294967295", ""]),
        "path": PLAIN_PATHS,
        "linkpath": TARGETS.filter(lambda target: "\0" not in target),
        "comment": st.just("nothing"),
    }.items():
        if draw(st.integers(0, 5)) == 0:
            found[key] = draw(values)
    return found


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """One entry."""
    kind: str = draw(KINDS)
    marker = draw(st.integers(0, 5)) == 0
    path: str = draw(MARKERS if marker else ENTRY_PATHS)
    extended = draw(st.integers(0, 3)) == 0
    data: bytes = draw(st.sampled_from([b"", b"x", b"data" * 200])) if kind in "0\0" else b""
    if kind == "g":
        return global_header({"path": path})
    before = b""
    if draw(st.integers(0, 15)) == 0:
        before = gnu_name(draw(PLAIN_PATHS))
    return before + entry(
        path,
        kind,
        data,
        mode=draw(MODES),
        uid=draw(OWNERS),
        gid=draw(OWNERS),
        mtime=draw(TIMES),
        link=draw(TARGETS) if kind in "12" else "",
        device=draw(st.sampled_from([(0, 0), (1, 3), (259, 300)])) if kind in "34" else (0, 0),
        magic=draw(st.sampled_from([USTAR, USTAR, USTAR, GNU, V7])),
        pax=draw(records()) if extended else (),
        xattrs=draw(XATTRS) if extended and draw(st.booleans()) else None,
    )


DIRECTORIES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
LEAVES = st.builds(
    lambda directory, name: f"{directory}/{name}" if directory else name,
    st.one_of(st.just(""), DIRECTORIES, DIRECTORIES, DIRECTORIES),
    st.sampled_from("xyzxyza"),
)


@st.composite
def sensible_entries(draw: st.DrawFn) -> bytes:
    """One entry that is rarely refused, so that long layers come to their end."""
    kind = draw(st.sampled_from("000055552"))
    return entry(
        draw(DIRECTORIES if kind == "5" else LEAVES),
        kind,
        draw(st.sampled_from([b"", b"x"])) if kind == "0" else b"",
        mode=draw(MODES),
        uid=draw(st.sampled_from([0, 0, 7])),
        gid=draw(st.sampled_from([0, 0, 8])),
        mtime=draw(TIMES),
        link=draw(TARGETS) if kind == "2" else "",
        xattrs=draw(XATTRS) if draw(st.integers(0, 4)) == 0 else None,
    )


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    one = st.one_of(sensible_entries(), sensible_entries(), sensible_entries(), entries())
    parts: list[bytes] = draw(st.lists(one, min_size=1, max_size=8))
    end: bytes = draw(st.sampled_from([END, END, END, END, b"", bytes(512), bytes(10240)]))
    if draw(st.integers(0, 3)) == 0:
        parts.append(parts[draw(st.integers(0, len(parts) - 1))])
    return tar(*parts, end=end)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """A tar in one of its wrappings."""
    content: bytes = draw(tars())
    cut: int = draw(st.integers(0, len(content)))
    head, tail = content[:cut], content[cut:]
    return {
        0: lambda: Layer(content, OCI_TAR),
        1: lambda: Layer(content, DOCKER_TAR),
        2: lambda: Layer(gzipped(content), OCI_GZIP),
        3: lambda: Layer(gzipped(head) + gzipped(tail), OCI_GZIP),
        4: lambda: Layer(zstd(content), OCI_ZSTD),
        5: lambda: Layer(zstd(head) + skippable() + zstd(tail), OCI_ZSTD),
    }[draw(st.sampled_from([0, 0, 1, 2, 3, 4, 5]))]()


def chains() -> st.SearchStrategy[Chain]:
    return st.lists(layers(), min_size=1, max_size=3).map(tuple)
