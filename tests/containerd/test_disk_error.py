"""Disks that fail when the kernel writes back, long after write(2) went well; syncfs or fsync says so, once.

Thinly provisioned: the ext4 lies in a sparse file on a tmpfs that is full; that is ENOSPC. Broken: it lies in a file
in memory that is sealed against writing; that is EIO, of everything and for good. This kernel has no device mapper:
a disk of which only some blocks fail, or reads, cannot be made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imageprepull.pulling.chain import Chain
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import PullError
from imageprepull.runtime.connection import connect
from imageprepull.runtime.mounts import Mount
from tests.containerd.conftest import VERSIONS
from tests.containerd.pull_bench import FAST, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import PREFIX, ContainerdDaemon, remove, run, sweep
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import LayerSpec, build_image

MIB = 1 << 20


class ThinDisk:
    """An ext4 of 1 GiB on a tmpfs of far less."""

    def __init__(self, folder: Path) -> None:
        self.mountpoint = folder / "fs"
        self._backing = folder / "backing"

    @property
    def _filler(self) -> Path:
        return self._backing / "filler"

    def break_down(self) -> None:
        """From now on the disk takes what the runtime writes for itself, and no layer."""
        run("sync", "--file-system", str(self.mountpoint))
        with self._filler.open("wb") as file:
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), 4096)
            file.truncate(file.seek(0, os.SEEK_END) - 4 * MIB)

    def mend(self) -> None:
        self._filler.unlink(missing_ok=True)
        # What failed since the pull has looked is told once more, to whoever asks first.
        self.synced_by_somebody()

    def synced_by_somebody(self) -> bool:
        command = ["sync", "--file-system", str(self.mountpoint)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def make(self) -> None:
        for folder in (self.mountpoint, self._backing):
            folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(self._backing))
        image = self._backing / "image"
        with image.open("wb") as file:
            file.truncate(1 << 30)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", str(image))
        run("mount", "-o", "loop", str(image), str(self.mountpoint))


@contextmanager
def thin_disk() -> Iterator[ThinDisk]:
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    try:
        made = ThinDisk(folder)
        made.make()
        yield made
    finally:
        remove(folder)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_a_thin_disk_could_not_take_is_not_believed_but_made_anew(
    version: str, fake: FaultyRegistry, path: dict[str, Any]
) -> None:
    image = build_image([layer("lower", 100_000), LayerSpec({"large": random.Random(1).randbytes(24 * MIB)})])
    reference = fake_serve(fake, image)
    changes: dict[str, Any] = {
        "digest": image.digest,
        "keep_lease_on_failure": True,
        "sync": "before",
        "keep_blobs": "never",
    }
    with thin_disk() as disk:
        daemon = ContainerdDaemon(version, disk.mountpoint)
        try:
            daemon.start()
            async with (
                connect(daemon.address) as containerd,
                pull_bench(containerd, daemon, **path) as bench,
            ):
                await bench.puller.extraction.choose("overlayfs", {})
                disk.break_down()
                with pytest.raises(PullError) as caught:
                    await bench.pull(reference, **changes)
                assert caught.value.reason in {"DiskFull", "DiskError"}, caught.value.message
                disk.mend()
                assert bench.spooled() == []
                assert await containerd.images.list() == []
                progress = Watched("x")
                await bench.pull(reference, progress, **changes)
                assert progress.states() == ["Applied", "Applied"], "nothing of it was believed"
                assert (await bench.presence(reference)).present
                # Only now: the runtime, whose database is on the same disk, may not have been able to delete a lease.
                await bench.assert_clean()
        finally:
            daemon.stop()


@pytest.mark.parametrize("told", ["another pull", "somebody's sync"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_lost_write_counts_for_who_unpacked_although_others_were_told_of_it(
    version: str, told: str, fake: FaultyRegistry, path: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells each open descriptor once, and none that is opened afterwards."""
    if path["path"] == "portable":
        pytest.skip("the runtime writes and commits in one go: nothing waits in between")
    data = random.Random(1).randbytes(24 * MIB)
    waits = build_image([LayerSpec({"large": data})])
    other = build_image([layer("other", 300_000)])
    reference, others = fake_serve(fake, waits, "waits"), fake_serve(fake, other, "other")
    changes: dict[str, Any] = {"keep_lease_on_failure": True, "sync": "before", "keep_blobs": "never"}
    unpacked, go_on = asyncio.Event(), asyncio.Event()
    plain = Chain.building

    @asynccontextmanager
    async def building(self: Chain, one: ChainLayer) -> AsyncIterator[list[Mount] | None]:
        if one.chain_id == waits.chain_ids[0]:
            unpacked.set()
            await go_on.wait()
        async with plain(self, one) as mounts:
            yield mounts

    monkeypatch.setattr(Chain, "building", building)
    with thin_disk() as disk:
        daemon = ContainerdDaemon(version, disk.mountpoint)
        try:
            daemon.start()
            async with (
                connect(daemon.address) as containerd,
                pull_bench(containerd, daemon, **path) as bench,
            ):
                await bench.puller.extraction.choose("overlayfs", {})
                disk.break_down()
                pulling = asyncio.create_task(bench.pull(reference, digest=waits.digest, **changes))
                await asyncio.wait_for(unpacked.wait(), 30)
                try:
                    if told == "another pull":
                        # By its own sync or a write of the runtime: in which order the disk is filled is the kernel's.
                        with pytest.raises(PullError):
                            await bench.pull(others, digest=other.digest, **changes)
                    else:
                        assert not disk.synced_by_somebody()
                    disk.mend()
                    go_on.set()
                    with pytest.raises(PullError) as caught:
                        await pulling
                finally:
                    pulling.cancel()
                    await asyncio.wait([pulling])
                assert caught.value.reason in {"DiskFull", "DiskError"}, caught.value.message
                monkeypatch.undo()
                await bench.pull(reference, digest=waits.digest, **changes)
                (folder,) = await bench.puller.folders.folders(containerd, "overlayfs", waits.chain_ids, {})
                run("sysctl", "-qw", "vm.drop_caches=3")
                assert (folder / "large").read_bytes() == data
                await bench.assert_clean()
        finally:
            daemon.stop()


@contextmanager
def sealable_disk() -> Iterator[tuple[Path, int]]:
    """A mount point, and the descriptor of the memory that is its disk."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    memory = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(memory, 256 * MIB)
        file = f"/proc/{os.getpid()}/fd/{memory}"
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", file)
        (folder / "fs").mkdir()
        run("mount", "-o", "loop", file, str(folder / "fs"))
        yield folder / "fs", memory
    finally:
        remove(folder)
        os.close(memory)


def dies(daemon: ContainerdDaemon) -> bool:
    """Whether the daemon ends by itself."""
    assert daemon.process is not None
    try:
        daemon.process.wait(10)
    except subprocess.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_broken_disk_is_named(version: str, fake: FaultyRegistry, path: dict[str, Any]) -> None:
    image = build_image([layer("broken", 100_000)])
    reference = fake_serve(fake, image)
    with sealable_disk() as (mountpoint, memory):
        daemon = ContainerdDaemon(version, mountpoint)
        try:
            daemon.start()
            settings = replace(FAST, cleanup_timeout=2, daemon_patience=1)
            async with (
                connect(daemon.address) as containerd,
                pull_bench(containerd, daemon, settings=settings, **path) as bench,
            ):
                await bench.puller.extraction.choose("overlayfs", {})
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                with pytest.raises(PullError) as caught:
                    await bench.pull(reference, keep_lease_on_failure=True, sync="before")
                # containerd 1.6 may die of it.
                died = caught.value.reason == "RuntimeUnavailable" and await asyncio.to_thread(dies, daemon)
                reason = "RuntimeUnavailable" if died else "DiskError"
                assert (caught.value.reason, caught.value.permanent) == (reason, False), str(caught.value)
                assert bench.spooled() == []
        finally:
            daemon.stop()
