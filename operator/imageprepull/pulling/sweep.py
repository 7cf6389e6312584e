"""At the start of an agent: clean up after its earlier lives, or keep what the images still wanted can use.

Whose something is, is read from labels and sidecars; nothing of others is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from imageprepull.pulling.chain_removal import Removed
from imageprepull.pulling.durability import make_durable
from imageprepull.pulling.labels import EXTRACT, LEASE, LEASE_IMAGE, UNSYNCED
from imageprepull.pulling.leases import (
    LeaseTerms,
    bridge_of,
    discard_lease,
    expires_at,
    finish_replacing,
    is_bridge,
)
from imageprepull.pulling.placing import any_placed, collect_unrecorded
from imageprepull.pulling.sidecars import remove_all_but
from imageprepull.pulling.threads import in_thread
from imageprepull.pulling.unsynced import remove_unsynced
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound
from imageprepull.runtime.leases import Lease

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Swept:
    """What was found and removed; `kept_leases` are those of images still wanted."""

    kept_leases: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    ingests: list[str] = field(default_factory=list)
    spools: list[str] = field(default_factory=list)
    unsynced_snapshots: list[str] = field(default_factory=list)
    unsynced_images: list[str] = field(default_factory=list)


async def sweep(
    containerd: Containerd,
    *,
    owner: str,
    snapshotter: str,
    snapshotter_root: Path,
    spool_dir: Path,
    boot_id: str,
    wanted: Collection[str] | None,
    lease_of: Callable[[str], LeaseTerms],
) -> Swept:
    """Remove what earlier lives of `owner` left and nothing needs.

    Call it before the first pull, with the right to be the only agent of the node.

    Args:
        containerd: the connection, without a lease.
        owner: the value of the label `imageprepull.io/lease`.
        snapshotter: the one that pulls use.
        snapshotter_root: its folder as this process sees it.
        spool_dir: the puller's.
        boot_id: this boot's.
        wanted: top-level digests of images that will be pulled again: their leases and spool files stay. None: it is
            not known yet; whatever a pull could go on with stays.
        lease_of: the lease under which the image of a digest will be pulled.

    Raises:
        RuntimeFault, PullError: the runtime or the disk does not do as asked; call again.
    """
    swept = Swept()
    removed = await _unsynced(containerd, snapshotter, snapshotter_root, boot_id, owner)
    swept.unsynced_snapshots, swept.unsynced_images = removed.snapshots, removed.records

    def resumed(lease: Lease) -> bool:
        return _resumed(lease, wanted, lease_of) and not _expired(lease)

    leases = await _leases_of(containerd, owner, resumed)
    kept = [lease for lease in leases if resumed(lease)]
    swept.kept_leases = [lease.id for lease in kept]
    await _active_snapshots(containerd, snapshotter, owner, swept)
    for lease in leases:
        if lease in kept:
            continue
        swept.ingests += await discard_lease(containerd, lease.id)
        swept.leases.append(lease.id)
    placed = await in_thread(lambda: any_placed(spool_dir))
    # A lease may expire before its pull goes on; the bytes are as good as they were.
    owners = None if wanted is None else {lease_of(digest).id for digest in wanted}
    swept.spools = await in_thread(lambda: remove_all_but(spool_dir, owners, boot_id))
    if placed and swept.spools:
        await collect_unrecorded(containerd, {LEASE: owner})
    log.info("swept", **{name: len(getattr(swept, name)) for name in Swept.__slots__})
    return swept


async def _leases_of(containerd: Containerd, owner: str, resumed: Callable[[Lease], bool]) -> list[Lease]:
    """Ours, after those were put together that were being replaced when somebody died.

    A bridge may be all that holds an image's layers.
    """
    ours = [f'labels."{LEASE}"=="{owner}"']
    leases = await containerd.leases.list(ours)
    bridges = [lease for lease in leases if is_bridge(lease) and resumed(lease)]
    for bridge in bridges:
        await finish_replacing(containerd, bridge)
    return await containerd.leases.list(ours) if bridges else leases


def _resumed(lease: Lease, wanted: Collection[str] | None, lease_of: Callable[[str], LeaseTerms]) -> bool:
    """Whether a pull would adopt it: not one of another version, snapshotter or platform.

    Leases that are no image's are of work that begins anew: the canary, a look at folders.
    """
    image = lease.labels.get(LEASE_IMAGE)
    if image is None or (wanted is not None and image not in wanted):
        return False
    adopted = lease_of(image).id
    return lease.id in {adopted, bridge_of(adopted)}


def _expired(lease: Lease) -> bool:
    expiry = expires_at(lease)
    return expiry is not None and expiry <= time.time()


async def _unsynced(
    containerd: Containerd, snapshotter: str, root: Path, boot_id: str, owner: str
) -> Removed:
    """Layers committed by another boot are removed with all that stands on them; this boot's are synced."""
    removed = await remove_unsynced(containerd, snapshotter, boot_id, {LEASE: owner})
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
    # It leaves what still carries the label of another boot.
    await make_durable(containerd, snapshotter, root, boot_id, [found.name for found in labelled])
    return removed


async def _active_snapshots(containerd: Containerd, snapshotter: str, owner: str, swept: Swept) -> None:
    """Our own active snapshots: a dead process's, since keys are never used twice."""
    for found in await containerd.snapshots.list(snapshotter, [f'labels."{LEASE}"=="{owner}"']):
        if not found.name.startswith(EXTRACT):
            continue
        try:
            await containerd.snapshots.remove(snapshotter, found.name)
        except NotFound:
            continue
        swept.snapshots.append(found.name)
