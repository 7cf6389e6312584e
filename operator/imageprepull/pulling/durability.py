"""What a power cut would take: committed layers carry the boot's ID until one syncfs has written them to disk.

containerd syncs its metadata and not the files of a layer, so that after a power cut complete records stand over
empty files. A layer still labelled with another boot is therefore never believed (see `sweep`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from imageprepull.pulling.errors import DISK_ERRNOS, PullError, as_pull_error, first_error
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.pulling.steps import Step, reached
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound
from imageprepull.unpacking import kernel

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_AT_ONCE = 8
"""Labels cleared at once: the daemon writes one after the other, but need not wait for us in between."""


def read_boot_id(path: Path = BOOT_ID) -> str:
    """The kernel's name for the time since it started."""
    return path.read_text().strip()


async def make_durable(
    containerd: Containerd, snapshotter: str, root: Path, boot_id: str, chain_ids: Iterable[str]
) -> None:
    """Write the snapshotter's file system to disk, then take the label from those of `chain_ids` that carry it.

    Raises:
        PullError: CannotSync, when the folder is not to be seen from here; DiskError or DiskFull, when it failed: then no
            layer that waited for it will be believed again.
        RuntimeFault: the runtime does not do as asked.
    """
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"=="{boot_id}"'])
    unsynced = {found.name for found in labelled} & set(chain_ids)
    if not unsynced:
        return
    try:
        await asyncio.to_thread(sync_file_system, root)
    except OSError as error:
        why = f"cannot sync the file system of the snapshots, {root}: {error.strerror}"
        if error.errno not in DISK_ERRNOS:
            raise PullError("CannotSync", why) from error
        await distrust(containerd, snapshotter, boot_id, {found.name for found in labelled})
        raise PullError(as_pull_error(error).reason, why) from error
    reached(Step.SYNCED, str(root))
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
            for chain_id in unsynced:
                group.create_task(clear(chain_id))
    except BaseExceptionGroup as failures:
        raise first_error(failures) from failures


async def distrust(containerd: Containerd, snapshotter: str, boot_id: str, chain_ids: Iterable[str]) -> None:
    """Have layers made anew, as if another boot had left them unsynced.

    The kernel tells of a failed write once, and forgets what it could not write: a second syncfs would succeed over
    files that are not on the disk. Whose they were it does not tell, so it may be any that waited.
    """
    for chain_id in chain_ids:
        try:
            await containerd.snapshots.update_labels(snapshotter, chain_id, {UNSYNCED: f"{boot_id}-lost"})
        except NotFound:
            continue


def sync_file_system(folder: Path) -> None:
    """syncfs(2) of the file system that a folder is on."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.syncfs(fd)
    finally:
        os.close(fd)
