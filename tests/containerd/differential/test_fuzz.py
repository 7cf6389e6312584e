"""Layers with bytes changed at random, for a set time: nothing but a tree or a refusal comes of them.

Most go through our reading of compression and tar alone, in this process, thousands in a few seconds; some through
whole workers and both daemons, which must be of one mind with us. `python -m tests.nightly fuzz` takes an hour.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from imageprepull.unpacking.archive import Archive
from imageprepull.unpacking.inflate import open_inflater
from imageprepull.unpacking.jobs import Limits, Refused
from imageprepull.unpacking.stream import Stream
from tests.containerd.differential.cases import ALL
from tests.containerd.differential.comparison import compare, unpack
from tests.containerd.differential.layers import DOCKER_TAR, OCI_GZIP, OCI_ZSTD, Layer, gzipped, zstd
from tests.containerd.differential.listing import listing, unpacked
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.tarbytes import BLOCK

SECONDS = float(os.environ.get("IMAGEPREPULL_FUZZ_SECONDS", "16"))
SEED = int(os.environ.get("IMAGEPREPULL_FUZZ_SEED", "0"))
MOST = 20_000
"""Bytes of a seed: larger ones change too little."""
INTERESTING = [0, 1, 0x20, 0x2F, 0x30, 0x37, 0x38, 0x7F, 0x80, 0xFF]


def seeds() -> list[bytes]:
    """The tars of the named cases."""
    found = set()
    for case in ALL:
        for layer in case.chain:
            try:
                content = unpacked(layer.blob)
            except Exception:  # noqa: BLE001 - broken on purpose, by whatever error
                continue
            if BLOCK <= len(content) <= MOST:
                found.add(content)
    return sorted(found)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, blocks moved, the end cut; checksums mostly right again."""
    data = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        position = dice.randrange(len(data))
        start = position - position % BLOCK
        match dice.randrange(8):
            case 0 | 1 | 2:
                data[position] = dice.choice(INTERESTING) if dice.random() < 0.6 else dice.randrange(256)
            case 3:
                data[position] ^= 1 << dice.randrange(8)
            case 4:
                data[start:start] = data[start : start + BLOCK]
            case 5:
                del data[start : start + BLOCK * dice.choice([1, 1, 2])]
            case 6:
                other = dice.randrange(0, len(data), BLOCK)
                data[start : start + BLOCK], data[other : other + BLOCK] = (
                    data[other : other + BLOCK],
                    data[start : start + BLOCK],
                )
            case 7 if dice.random() < 0.3:
                del data[position:]
        if not data:
            return bytes(BLOCK)
    if dice.random() < 0.9:
        mend_checksums(data)
    return bytes(data)


def mend_checksums(data: bytearray) -> None:
    """Give every block that looks like a header its sum."""
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        if data[start + 257 : start + 262] == b"ustar" or data[start + 154 : start + 156] == b"\0 ":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])


def source(data: bytes, dice: random.Random) -> Callable[[], bytes]:
    """The bytes in pieces of any size."""
    position = 0

    def more() -> bytes:
        nonlocal position
        piece = data[position : position + dice.choice([1, 7, 511, 512, 513, 4096, 1 << 18])]
        position += len(piece)
        return piece

    return more


def read_all(blob: bytes, dice: random.Random) -> int:
    """Every entry and its content, as a worker reads them, but for the files. Returns the entries."""
    archive = Archive(Stream(open_inflater(source(blob, dice), detect=True, limits=Limits())))
    count = 0
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        while (header := archive.next()) is not None:
            count += 1
            if dice.random() < 0.7:
                archive.copy(nowhere.fileno())
            assert isinstance(header.name, bytes)
        archive.drain()
    return count


def wrapped(content: bytes, dice: random.Random) -> bytes:
    """Compressed, and damaged once more in some cases."""
    match dice.randrange(6):
        case 0:
            blob = bytearray(gzipped(content))
        case 1:
            blob = bytearray(zstd(content, write_checksum=dice.random() < 0.5))
        case _:
            return content
    if dice.random() < 0.7:
        blob[dice.randrange(len(blob))] = dice.randrange(256)
    if dice.random() < 0.2:
        del blob[dice.randrange(len(blob)) :]
    return bytes(blob)


def test_reading_ends_in_entries_or_a_refusal() -> None:
    tars = seeds()
    assert len(tars) > 500
    dice = random.Random(SEED)
    ends = {"read": 0, "refused": 0}
    until = time.monotonic() + SECONDS / 2
    # On a slow machine for longer, until both were seen often enough.
    while time.monotonic() < until or min(ends.values()) <= 100:
        state = dice.getstate()
        blob = wrapped(mutated(dice.choice(tars), dice), dice)
        try:
            read_all(blob, dice)
        except (Refused, OSError, ValueError):
            # What `layer` makes refusals of.
            ends["refused"] += 1
        except BaseException:
            print(f"seed {SEED}, {hash(state):x}: {blob!r}")  # noqa: T201
            raise
        else:
            ends["read"] += 1


def test_workers_are_of_one_mind_with_containerd(theirs: Reference, mine: Ours) -> None:
    tars = seeds()
    dice = random.Random(SEED + 1)
    until = time.monotonic() + SECONDS / 2
    accepted = count = 0
    # On a slow machine for longer, until some were taken and some refused.
    while time.monotonic() < until or not 0 < accepted < count:
        layer = Layer(mutated(dice.choice(tars), dice), DOCKER_TAR)
        if not is_bearable(layer.blob):
            continue
        chain = (layer,) if dice.random() < 0.5 else (Layer(dice.choice(tars), DOCKER_TAR), layer)
        ours, reference = unpack(chain, mine, theirs)
        if ours[-1].final:
            # Our limits, which containerd has not.
            continue
        found = {version: compare(ours, outcomes) for version, outcomes in reference.items()}
        # The versions differ between themselves where device numbers are impossible; then we are with one of them.
        if all(found.values()):
            pytest.fail("\n".join([str(found), *(listing(layer) for layer in chain)]))
        count += 1
        accepted += ours[-1].accepted


def is_bearable(content: bytes) -> bool:
    """Not a sparse file of terabytes, whose zeros containerd would write out."""
    return b"GNU.sparse" not in content


def test_damaged_compression_is_refused_by_all(theirs: Reference, mine: Ours) -> None:
    """Single bytes of small gzip and zstd blobs, in turn."""
    content = seeds()[0]
    for media_type, blob in ((OCI_GZIP, gzipped(content)), (OCI_ZSTD, zstd(content, write_checksum=True))):
        for position in range(0, len(blob), max(1, len(blob) // 25)):
            damaged = blob[:position] + bytes([blob[position] ^ 0x55]) + blob[position + 1 :]
            ours, reference = unpack((Layer(damaged, media_type),), mine, theirs)
            for version, outcomes in reference.items():
                assert compare(ours, outcomes) == [], (version, media_type, position)
