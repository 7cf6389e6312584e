"""Removing layers that are not to be believed: top-down, with every snapshot and image record that stands on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import structlog

from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound, PreconditionFailed
from imageprepull.runtime.snapshots import SnapshotInfo

log = structlog.get_logger(__name__)
_GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."


def standing_on(roots: Collection[str], snapshots: Iterable[SnapshotInfo]) -> list[str]:
    """The snapshots of `roots` and all their descendants, children before parents."""
    children: dict[str, list[str]] = {}
    known = set()
    for snapshot in snapshots:
        known.add(snapshot.name)
        children.setdefault(snapshot.parent, []).append(snapshot.name)
    order: list[str] = []
    seen: set[str] = set()
    pending = [(name, False) for name in sorted(roots) if name in known]
    while pending:
        name, below_done = pending.pop()
        if below_done:
            order.append(name)
        elif name not in seen:
            seen.add(name)
            pending.append((name, True))
            pending.extend((child, False) for child in children.get(name, ()))
    return order


async def remove_unsynced(
    containerd: Containerd, snapshotter: str, boot_id: str
) -> tuple[list[str], list[str]]:
    """Remove the layers that another boot left unsynced, as `remove_chains` does."""
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
    foreign = {found.name for found in labelled if found.labels.get(UNSYNCED) != boot_id}
    return await remove_chains(containerd, snapshotter, foreign) if foreign else ([], [])


async def remove_chains(
    containerd: Containerd, snapshotter: str, roots: Collection[str]
) -> tuple[list[str], list[str]]:
    """Remove `roots`, what stands on them, and the records of images made of any; (snapshots, records) removed.

    A snapshot that a container of another tool still uses cannot go; it is named in the log and left.
    """
    doomed = standing_on(roots, await containerd.snapshots.list(snapshotter, []))
    configs = {
        blob.digest
        for blob in await containerd.content.list([f'labels."{_GC_SNAPSHOT}{snapshotter}"'])
        if blob.labels.get(f"{_GC_SNAPSHOT}{snapshotter}") in doomed
    }
    records = await _records_of(containerd, configs)
    for name in records:
        await containerd.images.delete(name)
    removed = []
    for name in doomed:
        try:
            await containerd.snapshots.remove(snapshotter, name)
        except NotFound:
            pass
        except PreconditionFailed as error:
            log.warning("an unsynced snapshot is in use and stays", snapshot=name, error=str(error))
            continue
        removed.append(name)
    if removed:
        log.warning(
            "removed layers that were committed before the machine restarted",
            snapshots=len(removed),
            images=records,
        )
    return removed, records


async def _records_of(containerd: Containerd, configs: set[str]) -> list[str]:
    """Records whose target leads to one of the configs, by the labels that the collector follows."""
    if not configs:
        return []
    parents: dict[str, set[str]] = {}
    for blob in await containerd.content.list(['labels."containerd.io/gc.ref.content.config"']):
        parents.setdefault(blob.labels["containerd.io/gc.ref.content.config"], set()).add(blob.digest)
    manifests = set().union(*(parents.get(config, set()) for config in configs))
    targets = set(manifests)
    for record in await containerd.images.list():
        if record.target.digest not in targets and record.target.is_index:
            found = await containerd.content.info(record.target.digest)
            if found is not None and manifests & set(found.labels.values()):
                targets.add(record.target.digest)
    return [
        record.name for record in await containerd.images.list() if record.target.digest in targets | configs
    ]
