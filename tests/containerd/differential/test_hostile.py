"""Layers made to do harm: nothing outside is touched, limits end them for good, and the rest is as containerd has it.

Every layer of this folder is unpacked beside a canary (ours.py), which is looked at after each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imageprepull.unpacking.jobs import Limits
from tests.containerd.differential.cases.table import LOWER, plain
from tests.containerd.differential.comparison import compare, unpack
from tests.containerd.differential.layers import OCI_GZIP, OCI_ZSTD, Layer, gzipped, skippable, zstd
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.tarbytes import (
    directory,
    entry,
    fifo,
    file,
    global_header,
    gnu_name,
    hardlink,
    opaque,
    padded,
    pax_header,
    record,
    symlink,
    tar,
    whiteout,
)
from tests.containerd.differential.unpacker import Answer, Job

UP = "../../../../../../../../"
WAYS_OUT = [UP, "/" + UP, "x/" + UP + "../", "./" + UP, "/"]
CANARY = "canary/file"


def escapes() -> Iterator[tuple[str, bytes]]:
    """Layers that reach for a file beside them, by everything that has a name in it."""
    for number, way in enumerate(WAYS_OUT):
        for where in (way + CANARY, f"{way}../canary/file", f"{way}0/../canary/file"):
            yield f"name-{number}", tar(file(where, b"croaks"))
            yield f"name-in-pax-{number}", tar(entry("n", "0", b"croaks", pax={"path": where}))
            yield f"name-in-gnu-{number}", tar(gnu_name(where), file("n", b"croaks"))
            yield f"whiteout-{number}", tar(whiteout(where))
            yield f"directory-{number}", tar(directory(where, 0o000, uid=66))
            yield f"global-header-{number}", tar(global_header({"path": where}))
        yield f"opaque-{number}", tar(opaque(way + "canary"))
        yield f"hardlink-{number}", tar(hardlink("n", way + CANARY))
        yield f"hardlink-of-it-{number}", tar(file("n", b"croaks"), hardlink(way + CANARY, "n"))
        yield f"symlink-{number}", tar(symlink("k", way + "canary"), file("k/file", b"croaks"))
        yield f"symlink-to-file-{number}", tar(symlink("k", way + CANARY), file("k", b"croaks"))
        yield (
            f"symlink-then-directory-{number}",
            tar(symlink("k", way + "canary"), directory("k", 0o000, uid=66)),
        )
        yield (
            f"symlink-as-directory-time-{number}",
            tar(directory("k", mtime=1), symlink("k", way + "canary")),
        )
        yield f"symlink-whiteout-{number}", tar(symlink("k", way + "canary"), whiteout("k/file"))
        yield f"symlink-opaque-{number}", tar(symlink("k", way + "canary"), opaque("k"))
        yield f"symlink-hardlink-{number}", tar(symlink("k", way + "canary"), hardlink("n", "k/file"))
        yield (
            f"symlink-hardlinked-{number}",
            tar(symlink("k", way + CANARY), hardlink("n", "k", uid=66, mode=0)),
        )
        yield f"symlink-by-symlink-{number}", tar(symlink("a", way), symlink("k", "a/canary"), file("k/file"))
        yield (
            f"symlink-made-later-{number}",
            tar(directory("k"), file("k/n"), symlink("k", way + "canary"), file("k/file", b"croaks")),
        )


ESCAPES = {f"{name}-{number}": layer for number, (name, layer) in enumerate(escapes())}


@pytest.mark.parametrize("above", [False, True], ids=["bottom", "upper"])
@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(name: str, above: bool, theirs: Reference, mine: Ours) -> None:
    layer = plain(ESCAPES[name])
    ours, reference = unpack((LOWER, layer) if above else (layer,), mine, theirs)
    for version, outcomes in reference.items():
        assert compare(ours, outcomes) == [], version


ZEROS = bytes(80 << 20)
MANY = tar(*(file(f"n{number}", b"") for number in range(50)))

LIMITS: dict[str, tuple[Layer, Limits, str]] = {
    "size": (plain(tar(file("n", b"x" * 5000))), Limits(unpacked_bytes=4096), "LayerTooLarge"),
    "size-after-the-end-mark": (
        plain(tar(file("n"), end=bytes(9000))),
        Limits(unpacked_bytes=4096),
        "LayerTooLarge",
    ),
    "zstd-bomb": (Layer(zstd(tar(file("n", ZEROS))), OCI_ZSTD), Limits(), "LayerTooLarge"),
    "zstd-bomb-behind-the-end-mark": (
        Layer(zstd(tar(file("n")) + ZEROS), OCI_ZSTD),
        Limits(),
        "LayerTooLarge",
    ),
    "gzip-bomb": (Layer(gzipped(tar(file("n", ZEROS)), 9), OCI_GZIP), Limits(ratio=900), "LayerTooLarge"),
    "entries": (plain(MANY), Limits(entries=20), "TooManyEntries"),
    "entries-of-the-root": (plain(tar(*[directory(".")] * 50)), Limits(entries=20), "TooManyEntries"),
    "entries-of-one-name": (plain(tar(*[file("n")] * 50)), Limits(entries=20), "TooManyEntries"),
    "entries-of-whiteouts": (
        plain(tar(*(whiteout(f"n{number}") for number in range(50)))),
        Limits(entries=20),
        "TooManyEntries",
    ),
    "directories": (
        plain(tar(*(directory(f"{'d' * 200}/{number}") for number in range(50)))),
        Limits(remembered_bytes=8000),
        "TooManyDirectories",
    ),
    "directories-that-are-not-listed": (
        plain(tar(*(file(f"{'d' * 200}/{number}/n") for number in range(50)))),
        Limits(remembered_bytes=8000),
        "TooManyDirectories",
    ),
    "name": (plain(tar(file("x/../" * 2000 + "n"))), Limits(), "NameTooLong"),
    "name-in-gnu": (plain(tar(gnu_name("n" * 5000), file("x"))), Limits(), "NameTooLong"),
    "link-target": (plain(tar(symlink("n", "./" * 3000))), Limits(), "NameTooLong"),
    "sparse-file": (
        plain(
            tar(
                entry(
                    "n",
                    data=padded(b"1\n%d\n0\n" % (1 << 42)),
                    pax={
                        "GNU.sparse.major": "1",
                        "GNU.sparse.minor": "0",
                        "GNU.sparse.name": "sparse",
                        "GNU.sparse.realsize": str(1 << 42),
                    },
                )
            )
        ),
        Limits(),
        "LayerTooLarge",
    ),
    "sparse-file-larger-than-file-systems-have": (
        plain(
            tar(
                entry(
                    "n",
                    pax={
                        "GNU.sparse.map": f"{1 << 60},0",
                        "GNU.sparse.numblocks": "1",
                        "GNU.sparse.size": str(1 << 60),
                    },
                )
            )
        ),
        Limits(),
        "LayerTooLarge",
    ),
    "sparse-files-in-sum": (
        plain(
            tar(
                *(
                    entry(
                        f"n{number}",
                        data=b"",
                        pax={
                            "GNU.sparse.map": f"{1 << 20},0",
                            "GNU.sparse.numblocks": "1",
                            "GNU.sparse.size": str(1 << 20),
                        },
                    )
                    for number in range(20)
                )
            )
        ),
        Limits(unpacked_bytes=10 << 20),
        "LayerTooLarge",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_final(name: str, mine: Ours) -> None:
    layer, limits, reason = LIMITS[name]
    # Not read: what a limit failed to stop may be of any size.
    with mine.laid_out((layer,), limits=limits, look=False) as ((outcome,), _):
        pass
    assert (outcome.reason, outcome.final) == (reason, True), outcome.refusal


def test_a_limit_names_the_entry(mine: Ours) -> None:
    for name in ("name", "sparse-file"):
        layer, limits, _ = LIMITS[name]
        with mine.laid_out((layer,), limits=limits, look=False) as ((outcome,), _):
            pass
        assert outcome.entry != b"", name


REFUSED = {
    "special-header-over-1-mib": tar(pax_header(record("comment", "x" * (1 << 20))), file("n")),
    "special-header-lies-about-its-size": tar(entry("x", "x", b"", size=1 << 40)),
    "gnu-name-lies-about-its-size": tar(entry("x", "L", b"", size=1 << 40)),
    "file-lies-about-its-size": tar(file("n", b"", size=1 << 40)),
    "name-of-60000-bytes": tar(gnu_name("n" * 60_000), file("x")),
    "xattr-with-a-huge-name": tar(file("n", xattrs={"user." + "k" * 900_000: "v"})),
    "xattr-with-a-huge-value": tar(file("n", xattrs={"user.k": "v" * 900_000})),
    "pax-number-of-a-million-digits": tar(file("n", pax={"uid": "1" * 1_000_000})),
    "pax-time-of-a-million-digits": tar(file("n", pax={"mtime": "1" * 1_000_000})),
    "pax-length-of-a-million-digits": tar(pax_header(b"1" * 1_000_000 + b" a=b\n"), file("n")),
    "sparse-map-of-a-million-parts": tar(
        entry(
            "n",
            pax={
                "GNU.sparse.map": "1," * 100_000 + "x",
                "GNU.sparse.numblocks": "50000",
                "GNU.sparse.size": "1",
            },
        )
    ),
    "unknown-type-with-a-hostile-name": tar(entry("\x1b[31m\n" * 10, "Q")),
    "truncated-in-file": tar(file("n", b"x" * 100_000))[:50_000],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_containerd_refuses_is_refused_in_few_words(name: str, theirs: Reference, mine: Ours) -> None:
    (outcome,), reference = unpack((plain(REFUSED[name]),), mine, theirs)
    assert not outcome.accepted
    # It ends in a status and a log line.
    assert len(outcome.refusal) <= 500
    assert len(outcome.entry) <= 4096
    assert outcome.refusal.isprintable()
    for outcomes in reference.values():
        assert not outcomes[-1].accepted


Maker = Callable[[int], bytes]

COSTLY: dict[str, Maker] = {
    "files": lambda count: tar(*(file(f"n{n}") for n in range(count))),
    "implicit-directories": lambda count: tar(*(file(f"x{n}/f") for n in range(count))),
    "implicit-directories-replaced": lambda count: tar(
        *(file(f"x{n}/f") + file(f"x{n}") for n in range(count))
    ),
    "links-replaced": lambda count: tar(*[symlink("a", "b") + file("a")] * count),
    "links-replaced-beside-implicit": lambda count: tar(
        *(file(f"x{n}/f") for n in range(count)), *[symlink("a", "b") + file("a")] * count
    ),
    "links-replaced-beside-directories": lambda count: tar(
        *(directory(f"x{n}") for n in range(count)), *(symlink("a", "b") + file("a") for _ in range(count))
    ),
    "opaque-again-and-again": lambda count: tar(
        *(file(f"d{n % 50}/x/f{n}") + opaque(f"d{n % 50}") for n in range(count))
    ),
    "opaque-of-many": lambda count: tar(*(file(f"d{n}/f") + opaque(f"d{n}") for n in range(count)), opaque()),
    "directories-under-a-changing-link": lambda count: tar(
        directory("a"), directory("b"), *(symlink("k", "ab"[n % 2]) + file(f"k/{n}") for n in range(count))
    ),
    "global-headers": lambda count: tar(*[global_header({"path": "x"})] * count),
    "fifos-in-one-directory": lambda count: tar(*(fifo(f"p{n}") for n in range(count))),
    "files-replaced": lambda count: tar(*[file("a")] * count),
    "whiteouts": lambda count: tar(*(whiteout(f"d{n}/x") for n in range(count))),
    "hardlinks": lambda count: tar(file("n"), *(hardlink(f"l{n}", "n") for n in range(count))),
}
FEW = 1000
TIMES = 6


@pytest.mark.parametrize("above", [False, True], ids=["bottom", "upper"])
@pytest.mark.parametrize("name", COSTLY)
def test_work_grows_with_the_layer_and_not_faster(name: str, above: bool, mine: Ours) -> None:
    seconds = []
    for count in (FEW, FEW * TIMES):
        layer = Layer(gzipped(COSTLY[name](count)))
        with mine.laid_out((LOWER, layer) if above else (layer,), look=False) as (outcomes, _):
            assert outcomes[-1].accepted, outcomes[-1].refusal
        seconds.append(mine.cpu)
    # Three times as much as in proportion, as clocks are coarse; what grows with the square takes 36 times as much.
    assert seconds[1] < 0.2 + seconds[0] * TIMES * 3, seconds


@pytest.mark.parametrize("above", [False, True], ids=["bottom", "upper"])
def test_deep_trees_are_removed(above: bool, theirs: Reference, mine: Ours) -> None:
    deep = "/".join("d" * 300)
    layer = plain(tar(*(entry for n in range(5) for entry in (file(deep), file("d", b"%d" % n)))))
    ours, reference = unpack((LOWER, layer) if above else (layer,), mine, theirs)
    assert {outcomes[-1].accepted for outcomes in reference.values()} == {ours[-1].accepted}


def test_skippable_frames_cost_nothing(mine: Ours) -> None:
    layer = Layer(zstd(tar(file("n"))) + skippable(b"") * 100_000, OCI_ZSTD)
    (outcome,) = mine.apply((layer,))
    assert outcome.accepted


def test_the_canary_is_watched(mine: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = mine._ask

    def reach_out(job: Job) -> Answer:
        (Path(job.target).parent / "canary" / "file").write_bytes(b"croaks")
        return ask(job)

    monkeypatch.setattr(mine, "_ask", reach_out)
    with pytest.raises(AssertionError, match="outside"):
        mine.apply((plain(tar(file("n"))),))
