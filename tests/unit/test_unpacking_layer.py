"""A whole layer through a worker, with one thread and with two: the same tree, the same errors."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import Extracted, ExtractJob, Refused
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers
from tests.unit.unpacking_zygotes import zygote


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with zygote(Settings(confine=False)) as started:
        yield started


def layer(seed: int = 1) -> bytes:
    """Three chunks of the inflater, so that one thread can be ahead of the other."""
    chance = random.Random(seed)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(60):
            entry = tarfile.TarInfo(f"folder/{number}")
            entry.size = chance.randrange(100_000)
            tar.addfile(entry, io.BytesIO(chance.randbytes(entry.size)))
    return packed.getvalue()


def stage(folder: Path, blob: bytes) -> tuple[int, int]:
    """Descriptors of an empty directory and of the blob."""
    folder.mkdir()
    file = folder.with_suffix(".blob")
    file.write_bytes(blob)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY), os.open(file, os.O_RDONLY)


async def unpacked(workers: Workers, folder: Path, blob: bytes, threads: int) -> Extracted:
    root, opened = stage(folder, blob)
    try:
        return await workers.extract(
            ExtractJob(size=len(blob), detect=True, bottom=True, threads=threads),
            root=root,
            blob=opened,
            frontier=Frontier(len(blob), len(blob)),
            progress=lambda _: None,
        )
    finally:
        os.close(root)
        os.close(opened)


async def test_one_thread_makes_the_same_tree_as_two(workers: Workers, tmp_path: Path) -> None:
    tar = layer()
    packed = gzip.compress(tar, 1)
    one = await unpacked(workers, tmp_path / "one", packed, 1)
    two = await unpacked(workers, tmp_path / "two", packed, 2)
    assert one == two
    assert one.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert one.entries == 60
    for number in range(60):
        name = f"folder/{number}"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_damaged_stream_is_refused_alike(workers: Workers, tmp_path: Path, threads: int) -> None:
    packed = gzip.compress(layer(), 1)
    with pytest.raises(Refused, match="ends in the middle"):
        await unpacked(workers, tmp_path / "layer", packed[: len(packed) // 2], threads)
