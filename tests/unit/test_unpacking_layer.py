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
from typing import cast

import pytest
import zstandard

from imageprepull.unpacking.frames import WIDER_WINDOW
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import (
    MORE_DIRECTORIES,
    MOST_REMEMBERED,
    MOST_WINDOW,
    Extracted,
    ExtractJob,
    Refused,
)
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers
from tests.unit.unpacking_zygotes import SCENARIOS, Stage, zygote


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with zygote(Settings(confine=False)) as started:
        yield started


def layer(seed: int = 1, entries: int = 60) -> bytes:
    """Three chunks of the inflater, so that one thread can be ahead of the other; 50 KB for each entry more."""
    chance = random.Random(seed)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(entries):
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


async def unpacked(
    workers: Workers,
    folder: Path,
    blob: bytes,
    threads: int,
    *,
    window: int = MOST_WINDOW,
    remembered: int = MOST_REMEMBERED,
) -> Extracted:
    root, opened = stage(folder, blob)
    try:
        return await workers.extract(
            ExtractJob(
                size=len(blob),
                detect=True,
                bottom=True,
                threads=threads,
                window=window,
                remembered=remembered,
            ),
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


def zstd(content: bytes, window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


async def test_a_frame_with_a_wider_window_than_granted_is_refused_to_be_tried_with_more(
    workers: Workers, tmp_path: Path
) -> None:
    tar = layer()
    packed = zstd(tar[: len(tar) // 2], 23) + zstd(tar[len(tar) // 2 :], 24)
    with pytest.raises(Refused) as refused:
        await unpacked(workers, tmp_path / "narrow", packed, 2, window=8 << 20)
    assert (refused.value.refusal.reason, refused.value.refusal.final) == (WIDER_WINDOW, False)
    assert (await unpacked(workers, tmp_path / "wide", packed, 2, window=16 << 20)).entries == 60


@pytest.fixture(scope="module")
def scenes() -> Iterator[Workers]:
    with zygote(SCENARIOS) as started:
        yield started


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_layer_is_inflated_by_as_many_threads_as_asked(
    scenes: Workers, tmp_path: Path, threads: int
) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(layer(), 1))
    seen = await Stage(scenes, tmp_path).ask("unpack", [str(packed), threads])
    assert isinstance(seen, dict)
    assert seen["beside"] is (threads == 2)


@pytest.mark.parametrize("threads", [1, 2])
async def test_memory_of_the_chunks_is_used_again(scenes: Workers, tmp_path: Path, threads: int) -> None:
    """Without keep_freed_memory each page of the tar is cleared by the kernel at least once."""
    packed = tmp_path / "packed"
    tar = layer(entries=600)
    packed.write_bytes(gzip.compress(tar, 1))
    seen = await Stage(scenes, tmp_path).ask("unpack", [str(packed), threads])
    assert isinstance(seen, dict)
    pages = len(tar) // os.sysconf("SC_PAGE_SIZE")
    assert 0 < seen["faults"] < pages // 3, f"{seen['faults']} page faults for {pages} pages of tar"


async def test_no_more_than_some_chunks_of_freed_memory_are_kept(scenes: Workers, tmp_path: Path) -> None:
    before, used, after = cast(list[int], await Stage(scenes, tmp_path).ask("take_and_free", 64 << 20))
    assert used - before > 60 << 20
    assert after - before < 24 << 20, f"{(after - before) >> 20} MiB are kept"


@pytest.mark.parametrize("listed", [True, False])
async def test_more_directories_than_granted_are_refused_to_be_tried_with_more(
    workers: Workers, tmp_path: Path, listed: bool
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(100):
            entry = tarfile.TarInfo(f"{'d' * 100}/{number}" + ("" if listed else "/file"))
            entry.type = tarfile.DIRTYPE if listed else tarfile.REGTYPE
            tar.addfile(entry)
    with pytest.raises(Refused) as refused:
        await unpacked(workers, tmp_path / "few", packed.getvalue(), 2, remembered=10_000)
    assert (refused.value.refusal.reason, refused.value.refusal.final) == (MORE_DIRECTORIES, False)
    assert (
        await unpacked(workers, tmp_path / "many", packed.getvalue(), 2, remembered=50_000)
    ).entries == 100
