"""Snapshots that the runtime refuses to remove though nothing stands on them: only its collection takes them.

A collection that takes a child forgets to tell its parent (containerd core/metadata/gc.go, `remove`, against snapshot.go,
`Remove`), and each removed image whose base another one shares leaves such a parent. Its `Remove` says "cannot remove
snapshot with child" for ever, while a collection asks only whether anything leads to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from imageprepull.pulling.labels import GC_SNAPSHOT, LEASE
from imageprepull.pulling.leases import SNAPSHOTS, collect
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import LeaseGone, NotFound
from imageprepull.runtime.leases import LeasedResource
from imageprepull.runtime.snapshots import SnapshotInfo


def forgotten(refused: Sequence[str], snapshots: Iterable[SnapshotInfo]) -> list[str]:
    """Of snapshots that were not removed, children before parents, those on which nobody else stands. Pure."""
    children: dict[str, set[str]] = {}
    for snapshot in snapshots:
        children.setdefault(snapshot.parent, set()).add(snapshot.name)
    found: list[str] = []
    for name in refused:
        if children.get(name, set()) <= set(found):
            found.append(name)
    return found


async def collect_forgotten(
    containerd: Containerd,
    snapshotter: str,
    names: Collection[str],
    configs: Iterable[str],
    labels: Mapping[str, str],
) -> list[str]:
    """Take away what leads to these snapshots and is ours, then let the runtime collect; those that went.

    `configs` are blobs that keep them by a label, of images whose records are gone; a pull puts the label on again.
    What another tool's lease holds stays.

    Raises:
        RuntimeFault: the runtime does not answer; call again.
    """
    for config in configs:
        with contextlib.suppress(NotFound):
            await containerd.content.update_labels(config, {f"{GC_SNAPSHOT}{snapshotter}": ""})
    held = {LeasedResource(f"{SNAPSHOTS}{snapshotter}", name) for name in names}
    for lease in await containerd.leases.list([f'labels."{LEASE}"=="{labels.get(LEASE, "")}"']):
        with contextlib.suppress(NotFound, LeaseGone):
            for resource in held.intersection(await containerd.leases.resources(lease.id)):
                await containerd.leases.delete_resource(lease.id, resource.type, resource.id)
    await collect(containerd, labels)
    return [name for name in names if await containerd.snapshots.stat(snapshotter, name) is None]
