"""Layers of a boot that ended before they were written to disk: containerd believes them, we do not."""

from __future__ import annotations

from collections.abc import Mapping

from imageprepull.pulling.chain_removal import Removed, remove_chains
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd


async def remove_unsynced(
    containerd: Containerd, snapshotter: str, boot_id: str, labels: Mapping[str, str]
) -> Removed:
    """Remove the layers that another boot left unsynced, as `remove_chains` does."""
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
    foreign = {found.name for found in labelled if found.labels.get(UNSYNCED) != boot_id}
    if not foreign:
        return Removed()
    return await remove_chains(
        containerd, snapshotter, foreign, "committed before the machine restarted and never synced", labels
    )
