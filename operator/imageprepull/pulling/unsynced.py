"""Layers of a boot that ended before they were written to disk: containerd believes them, we do not."""

from __future__ import annotations

from collections.abc import Mapping

from imageprepull.pulling.chain_removal import Keep, Removed, keep_nothing, remove_chains
from imageprepull.pulling.durability import believed
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd


async def remove_unsynced(
    containerd: Containerd,
    snapshotter: str,
    boot_id: str,
    labels: Mapping[str, str],
    *,
    keep: Keep = keep_nothing,
) -> Removed:
    """Remove the layers that another boot left unsynced, or a disk has lost, as `remove_chains` does.

    Where the boot is not known those of others cannot be told, and stay.
    """
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
    foreign = {found.name for found in labelled if not believed(found.labels.get(UNSYNCED), boot_id)}
    if not foreign:
        return Removed()
    why = "committed and never written to disk before the machine restarted or its disk failed"
    return await remove_chains(containerd, snapshotter, foreign, why, labels, keep=keep)
