"""Disks that fill up or fail under a pull: refused or stopped with figures, nothing left, and whole when there is room.

Each daemon has a small ext4 of its own, and a file that takes what the test wants to be gone. Both paths: fast, and
portable (containerd's own Diff).
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.space import NoRoom, Thresholds
from imageprepull.resources.free_space import parse_amount
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import VERSIONS, collect_garbage, leftovers, wipe
from tests.containerd.pull_bench import FAST, PullBench, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon, disk
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import LayerSpec, build_image

MB = 1_000_000
BLIND = replace(FAST, space_interval=3600)
"""The watch looks away, as it may when somebody fills the disk between two looks."""


@dataclass
class SmallDisk:
    """A daemon on 1 GiB."""

    daemon: ContainerdDaemon

    @property
    def filler(self) -> Path:
        return self.daemon.folder / "filler"

    def free(self) -> int:
        """For root, who may write into what is reserved."""
        space = os.statvfs(self.daemon.folder)
        return space.f_bfree * space.f_frsize

    def take_until(self, free: int) -> None:
        """Take what is more than so many bytes."""
        with self.filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, (self.free() - free) // 4096 * 4096)

    def leave(self, size: int) -> None:
        """Take all but so many bytes. How much that is tells only ENOSPC: ext4 keeps some for itself."""
        step = 64 << 20
        with self.filler.open("ab") as file:
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2
            file.truncate(file.seek(0, os.SEEK_END) - size)

    def relieve(self) -> None:
        self.filler.unlink(missing_ok=True)

    def blobs(self) -> set[str]:
        folder = self.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture(scope="module", params=VERSIONS)
def daemon(request: pytest.FixtureRequest) -> Iterator[ContainerdDaemon]:
    with disk(1) as folder:
        running = ContainerdDaemon(request.param, folder)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture
def small(daemon: ContainerdDaemon) -> Iterator[SmallDisk]:
    made = SmallDisk(daemon)
    yield made
    made.relieve()


@pytest.fixture
async def runtime(daemon: ContainerdDaemon, small: SmallDisk) -> AsyncIterator[Containerd]:
    async with connect(daemon.address) as connection:
        yield connection
        small.relieve()
        await wipe(connection)


def inflating(name: str, size: int) -> LayerSpec:
    """A layer that packs to a thirtieth: far more than is expected of it when it is unpacked."""
    block = random.Random(name).randbytes(3000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        data = b"".join(block + (number * 7919).to_bytes(8, "big") * 12 for number in range(size // 3096))
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return LayerSpec(tar=buffer.getvalue())


def incompressible(name: str, size: int) -> LayerSpec:
    return LayerSpec({f"layers/{name}": random.Random(name).randbytes(size)})


async def assert_nothing_left(bench: PullBench, small: SmallDisk, before: set[str]) -> None:
    """Also none of the blobs that were placed or sent, once the runtime has collected."""
    await bench.assert_clean()
    assert small.daemon.named("*.placed") == []
    small.relieve()
    await collect_garbage(bench.containerd)
    assert small.blobs() <= before


@pytest.mark.parametrize(
    "case", [("download", True), ("unpack", True), ("unpack", False)], ids=["download", "unpack", "command"]
)
async def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_behind(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, path: dict[str, Any], case: tuple[str, bool]
) -> None:
    where, agent = case
    upper = incompressible("upper", 12 * MB) if where == "download" else inflating("upper", 60 * MB)
    image = build_image([layer("lower", 100_000), upper])
    release = asyncio.Event()
    blob = image.layers[1].blob
    fake.faults[blob.digest] = [Fault(hold_after=100_000, release=release)]
    reference = fake_serve(fake, image)
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": agent}
    before = small.blobs()
    async with pull_bench(runtime, small.daemon, settings=BLIND, **path) as bench:
        progress = Watched("x")
        pulling = asyncio.create_task(bench.pull(reference, progress, **changes))
        await progress.until(lambda seen: len(seen.layers) == 2 and seen.layers[1].done > 0)
        await progress.until(lambda seen: seen.states()[0] == "Applied")
        await asyncio.to_thread(small.leave, 4 * MB if where == "download" else 25 * MB)
        release.set()
        with pytest.raises(PullError) as caught:
            await pulling
        error = caught.value
        assert (error.reason, error.permanent) == ("DiskFull", False), error.message
        assert isinstance(error, NoRoom)
        assert error.need.total >= blob.size
        await assert_nothing_left(bench, small, before)
        fake.faults.clear()
        await bench.pull(reference, **changes)
        assert (await bench.presence(reference)).present


async def test_what_does_not_fit_is_refused_before_a_byte_of_it_was_fetched(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, path: dict[str, Any]
) -> None:
    image = build_image([incompressible("large", 12 * MB)])
    reference = fake_serve(fake, image)
    before = small.blobs()
    async with pull_bench(runtime, small.daemon, thresholds=Thresholds(), **path) as bench:
        with pytest.raises(NoRoom) as caught:
            await bench.pull(reference, keep_lease_on_failure=True, min_free=parse_amount("1Gi"))
        assert caught.value.reason == "InsufficientDisk"
        assert "must stay free" in caught.value.message
        assert caught.value.need.spool == image.layers[0].blob.size
        assert fake.gets(image.layers[0].blob.digest) == []
        await assert_nothing_left(bench, small, before)
        await bench.pull(reference, keep_lease_on_failure=True)


async def test_a_pull_stops_before_the_threshold_and_gives_its_space_back(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, path: dict[str, Any]
) -> None:
    """Somebody else fills the disk meanwhile. At no time is less free than the kubelet evicts for."""
    image = build_image([layer("first", 100_000), incompressible("second", 12 * MB)])
    held = image.layers[1].blob
    fake.faults[held.digest] = [Fault(hold_after=6 * MB)]
    reference = fake_serve(fake, image)
    before = small.blobs()
    settings = replace(FAST, space_interval=0.01)
    thresholds = Thresholds()
    async with pull_bench(runtime, small.daemon, settings=settings, thresholds=thresholds, **path) as bench:
        progress = Watched("x")
        pulling = asyncio.create_task(
            bench.pull(reference, progress, digest=image.digest, keep_lease_on_failure=True)
        )
        await progress.until(lambda seen: len(seen.layers) == 2 and seen.layers[1].done >= 5 * MB)
        full = os.statvfs(small.daemon.folder)
        reserved = (full.f_bfree - full.f_bavail) * full.f_frsize
        wanted = full.f_blocks * full.f_frsize * 19 // 100 + reserved
        await asyncio.to_thread(small.take_until, wanted)
        with pytest.raises(NoRoom) as caught:
            await pulling
        assert caught.value.reason == "InsufficientDisk"
        assert caught.value.message.startswith("stopped before the disk was full")
        assert small.free() >= wanted - MB, "what it had written is free again"
        await assert_nothing_left(bench, small, before)
        fake.faults.clear()
        await bench.pull(reference)


async def test_an_image_that_is_there_is_pinned_on_a_full_disk(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, workers: Workers
) -> None:
    image = build_image([layer("there", 100_000)])
    reference = fake_serve(fake, image)
    async with pull_bench(runtime, small.daemon, thresholds=Thresholds(), workers=workers) as bench:
        await bench.pull(reference)
        await asyncio.to_thread(small.leave, 60 * MB)
        await bench.pull(reference, pin=True)
        assert (await bench.presence(reference, pin=True)).present
        assert (await leftovers(runtime)).leases == []


async def test_a_spool_on_a_disk_of_its_own_is_asked_for_what_is_written_there(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, path: dict[str, Any]
) -> None:
    """Blobs are not linked then but sent, so that the runtime's disk has to take them too."""
    image = build_image([incompressible("apart", 12 * MB)])
    reference = fake_serve(fake, image)
    blob = image.layers[0].blob
    before = small.blobs()
    spool = small.daemon.folder / "spool"
    if spool.exists():
        spool.rmdir()
    with disk(1) as other:
        apart = SmallDisk(replace(small.daemon, folder=other))
        spool.symlink_to(other / "spool")
        (other / "spool").mkdir()
        try:
            async with pull_bench(runtime, small.daemon, **path) as bench:
                await asyncio.to_thread(apart.leave, 5 * MB)
                with pytest.raises(NoRoom) as caught:
                    await bench.pull(reference)
                assert str(spool) in caught.value.message
                assert fake.gets(blob.digest) == []
                apart.relieve()
                await bench.pull(reference)
                assert (await bench.presence(reference)).present
                assert small.blobs() - before >= {blob.digest.removeprefix("sha256:")}
                await bench.assert_clean()
        finally:
            spool.unlink()


async def test_an_image_is_not_compared_with_its_blobs_where_there_is_no_room_for_that(
    small: SmallDisk, runtime: Containerd, fake: FaultyRegistry, workers: Workers
) -> None:
    image = build_image([layer("compared", 100_000)])
    reference = fake_serve(fake, image)
    async with pull_bench(runtime, small.daemon, thresholds=Thresholds(), workers=workers) as bench:
        await bench.pull(reference)
        request = bench.request(reference, keep_lease_on_failure=True)
        await asyncio.to_thread(small.leave, 60 * MB)
        with pytest.raises(NoRoom) as caught:
            await bench.puller.verify(request, Watched(reference))
        assert caught.value.reason == "InsufficientDisk"
        assert (await bench.presence(reference)).present
        small.relieve()
        assert (await bench.puller.verify(request, Watched(reference))).whole == 1
        await bench.assert_clean()
