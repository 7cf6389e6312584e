"""Snapshots that the runtime refuses to remove though nothing stands on them: only its collection takes them.

A collection that takes a child forgets to tell its parent (containerd core/metadata/gc.go, `remove`, against snapshot.go,
`Remove`), and each removed image whose base another one shares leaves such a parent. Its `Remove` says "cannot remove
snapshot with child" for ever, while a collection asks only whether anything leads to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from imageprepull.pulling.labels import GC_SNAPSHOT, LEASE
from imageprepull.pulling.leading import records_by_config
from imageprepull.pulling.leases import CONTENT, SNAPSHOTS, drop_lease, short_lease
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
    configs: Mapping[str, str],
    labels: Mapping[str, str],
) -> list[str]:
    """Take away what leads to these snapshots and is ours, then let the runtime collect; those that went.

    `configs` are blobs that keep chains by a label, of images whose records are gone, each with its chain; a pull puts
    the label on again. Whose pull has done so by now keeps it, and what another tool's lease holds stays.

    Raises:
        RuntimeFault: the runtime does not answer; call again.
    """
    owner = labels.get(LEASE, "")
    held = {LeasedResource(f"{SNAPSHOTS}{snapshotter}", name) for name in names}
    async with short_lease(containerd, "collect", labels) as leased:
        for resource in held:
            await leased.leases.add_resource(leased.lease, resource.type, resource.id)
        label = f"{GC_SNAPSHOT}{snapshotter}"
        for config in configs:
            with contextlib.suppress(NotFound):
                await containerd.content.update_labels(config, {label: ""})
        # A pull that set the label before that has a record by now, or its lease still. What it has is no more to be
        # believed than before, but a record must not lose its layers with the next collection.
        for config in await _taken(containerd, configs.keys(), owner):
            with contextlib.suppress(NotFound):
                await containerd.content.update_labels(config, {label: configs[config]})
        for lease in await containerd.leases.list([f'labels."{LEASE}"=="{owner}"']):
            with contextlib.suppress(NotFound, LeaseGone):
                for resource in held.intersection(await containerd.leases.resources(lease.id)):
                    await containerd.leases.delete_resource(lease.id, resource.type, resource.id)
        # In here: a collection that fails is to be asked for again.
        await drop_lease(containerd, leased.lease, sync=True)
    return [name for name in names if await containerd.snapshots.stat(snapshotter, name) is None]


async def _taken(containerd: Containerd, configs: AbstractSet[str], owner: str) -> set[str]:
    """Which of these configs have a record, or are under a lease that is not `owner`'s, as in a pull until it has its record.

    The leases first: whose has ended by then has its record when those are looked at.
    """
    taken: set[str] = set()
    for lease in await containerd.leases.list():
        if lease.labels.get(LEASE, "") != owner:
            with contextlib.suppress(NotFound, LeaseGone):
                found = await containerd.leases.resources(lease.id)
                taken |= configs & {resource.id for resource in found if resource.type == CONTENT}
    records = await records_by_config(containerd, configs)
    return taken | {config for config, its in records.items() if its}
