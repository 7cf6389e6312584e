"""What a power cut would take: committed layers carry the boot's ID until one syncfs has written them to disk.

containerd syncs its metadata and not the files of a layer, so that after a power cut complete records stand over
empty files. A layer still labelled with another boot is therefore never believed (see `sweep`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from imageprepull.pulling.errors import DISK_ERRNOS, DISK_ERROR, PullError, as_pull_error, first_error
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound
from imageprepull.unpacking import kernel

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN_BOOT = "unknown"
"""Stands for the ID where there is none to be read: then layers of other boots cannot be told, and are believed."""
CANNOT_SYNC = "CannotSync"
_LOST = "-lost"
_AT_ONCE = 8
"""Labels cleared at once: the daemon writes one after the other, but need not wait for us in between."""


def read_boot_id(path: Path = BOOT_ID) -> str:
    """The kernel's name for the time since it started."""
    return path.read_text().strip()


def believed(mark: str | None, boot_id: str) -> bool:
    """Whether the files of a layer whose label is `mark` (None: it bears none) can be taken for whole. Pure.

    Committed since this boot they are at least in the page cache; without a label they are on the disk. What a disk
    is known to have lost is neither.
    """
    if mark is None or mark == boot_id:
        return True
    return boot_id == UNKNOWN_BOOT and not mark.endswith(_LOST)


class WriteBack:
    """What has become of the bytes that were written to the snapshotter's file system.

    The kernel tells of a failed write once to each descriptor that was open when it failed, and forgets what it could
    not write. A descriptor that is opened afterwards learns nothing if anybody was told before: another pull, or
    whoever called sync(1). So one is opened before the first byte of a layer, and lasts until a loss has ended every
    pull that has written since.
    Layers that an earlier process has left unsynced have none that is old enough: for them it is the best there is.

    Args:
        root: the snapshotter's folder as this process sees it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.turn = asyncio.Lock()
        """Held from a look at the labels to their clearing, so that no sync hides another one's failure."""
        self.losses = 0
        """Grows when writes were lost. Who unpacks compares it with what `watch` has returned."""
        self.unhandled = False
        """Writes were lost, and the layers they may belong to are still labelled as if they were not."""
        self._descriptor = -1
        self._device = 0
        self._mutex = threading.Lock()

    def watch(self) -> int:
        """Be told of what fails from now on; `losses` as it stands. Call it before the first byte is written."""
        # Where the folder cannot be seen we write nothing there; a sync says why it cannot.
        with contextlib.suppress(OSError):
            self._open()
        return self.losses

    async def sync(self) -> None:
        """syncfs(2). A caller that is cancelled goes on only when it is over, so that no failure goes unnoticed.

        Raises:
            OSError: the folder cannot be opened, or the disk has lost writes since the last call.
        """
        await in_thread(self._sync)

    def handled(self) -> None:
        """The layers that a loss may concern are marked. What is begun from now on has nothing to do with it.

        Nor with what fails after it of the same writes: the next to `watch` opens anew.
        """
        self.unhandled = False
        self.losses += 1
        self.close()

    def close(self) -> None:
        """Let go of the file system; a later use opens it again."""
        with self._mutex:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> int:
        with self._mutex:
            # Another file system may have been mounted there.
            device = self.root.stat().st_dev
            if self._descriptor < 0 or device != self._device:
                found = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                self._descriptor, self._device = found, device
            return self._descriptor

    def _sync(self) -> None:
        descriptor = self._open()
        try:
            sync_file_system(descriptor)
        except OSError as error:
            if error.errno in DISK_ERRNOS:
                self.unhandled = True
                self.losses += 1
            raise


async def make_durable(
    containerd: Containerd, snapshotter: str, writes: WriteBack, boot_id: str, chain_ids: Iterable[str]
) -> None:
    """Write the snapshotter's file system to disk, then take the label from those of `chain_ids` that carry it.

    Raises:
        PullError: CannotSync, when the folder is not to be seen from here; DiskError or DiskFull, when the disk has lost
            what may be theirs: then no layer that waited for it will be believed again.
        RuntimeFault: the runtime does not do as asked.
    """
    ours = set(chain_ids)
    async with writes.turn:
        labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
        marks = {found.name: found.labels.get(UNSYNCED) for found in labelled if found.name in ours}
        if any(not believed(mark, boot_id) for mark in marks.values()):
            raise lost_writes()
        # What bears another mark and is believed is of a boot that nobody can tell: its label has to stay.
        unsynced = [name for name, mark in marks.items() if mark == boot_id]
        if not unsynced:
            return
        await _sync(containerd, snapshotter, writes, boot_id)
        reached(Step.SYNCED, str(writes.root))
        await _clear(containerd, snapshotter, unsynced)


async def settle_losses(containerd: Containerd, snapshotter: str, writes: WriteBack, boot_id: str) -> None:
    """After a disk has failed somebody: ask whether writes were lost, mark the layers they may belong to, and be done.

    Whoever failed may have been the one that was told. What was lost until now does not concern the next pull.

    Raises:
        RuntimeFault: the runtime does not do as asked; the next `make_durable` marks them.
    """
    async with writes.turn:
        # Its reason is that of the failure which has brought us here.
        with contextlib.suppress(PullError):
            await _sync(containerd, snapshotter, writes, boot_id)


async def _sync(containerd: Containerd, snapshotter: str, writes: WriteBack, boot_id: str) -> None:
    # Who was told of a loss before may not have come to say whose layers it concerns.
    failure = lost_writes() if writes.unhandled else await _try_to_sync(writes)
    if failure is None:
        return
    # Anew: meanwhile others have committed. Whose writes they were the kernel does not tell.
    waiting = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"=="{boot_id}"'])
    await distrust(containerd, snapshotter, boot_id, [found.name for found in waiting])
    writes.handled()
    raise failure


async def _try_to_sync(writes: WriteBack) -> PullError | None:
    """What was lost, if anything."""
    try:
        await writes.sync()
    except OSError as error:
        why = f"cannot sync the file system of the snapshots, {writes.root}: {error.strerror}"
        if error.errno not in DISK_ERRNOS:
            raise PullError(CANNOT_SYNC, why) from error
        return PullError(as_pull_error(error).reason, why)
    return None


async def _clear(containerd: Containerd, snapshotter: str, chain_ids: Iterable[str]) -> None:
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def clear(chain_id: str) -> None:
        async with at_once:
            try:
                await containerd.snapshots.update_labels(snapshotter, chain_id, {UNSYNCED: ""})
            except NotFound:  # the image was removed meanwhile.
                return
        reached(Step.BELIEVED, chain_id)

    try:
        async with asyncio.TaskGroup() as group:
            for chain_id in chain_ids:
                group.create_task(clear(chain_id))
    except BaseExceptionGroup as failures:
        raise first_error(failures) from failures


async def distrust(containerd: Containerd, snapshotter: str, boot_id: str, chain_ids: Iterable[str]) -> None:
    """Have layers made anew, as if another boot had left them unsynced.

    A second syncfs would succeed over files that are not on the disk.
    """
    for chain_id in chain_ids:
        try:
            await containerd.snapshots.update_labels(snapshotter, chain_id, {UNSYNCED: f"{boot_id}{_LOST}"})
        except NotFound:
            continue


def lost_writes() -> PullError:
    """What ends a pull when the disk has lost writes that may be its own."""
    return PullError(
        DISK_ERROR,
        "the disk has lost writes while layers were unpacked, which are made anew; "
        "look into the kernel's log of the node",
    )


def sync_file_system(descriptor: int) -> None:
    """syncfs(2) of the file system that a descriptor is on."""
    kernel.syncfs(descriptor)
