"""At the start of an agent: clean up after its earlier lives, or keep what the images still wanted can use.

Whose something is, is read from labels and sidecars; nothing of others is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from imageprepull.pulling.durability import CANNOT_SYNC, WriteBack, believed, make_durable
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import EXTRACT, LEASE, LEASE_IMAGE, UNSYNCED
from imageprepull.pulling.leases import (
    LeaseTerms,
    bridge_of,
    discard_lease,
    expires_at,
    finish_replacing,
    is_bridge,
    keep_content,
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
    writes: WriteBack,
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
        writes: its file system, the puller's.
        spool_dir: the puller's.
        boot_id: this boot's.
        wanted: top-level digests of images that will be pulled again: their leases and spool files stay. None: it is
            not known yet; whatever a pull could go on with stays.
        lease_of: the lease under which the image of a digest will be pulled.

    Raises:
        RuntimeFault, PullError: the runtime or the disk does not do as asked; call again.
    """
    swept = Swept()

    async def keep(digests: Collection[str]) -> None:
        # Their blobs are synced as they come. Without records they would be collected, and downloaded again.
        for digest in set(digests) if wanted is None else set(digests) & set(wanted):
            await keep_content(containerd, lease_of(digest), digest)

    removed = await remove_unsynced(containerd, snapshotter, boot_id, {LEASE: owner}, keep=keep)
    await _sync_rest(containerd, snapshotter, writes, boot_id)
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


async def _sync_rest(containerd: Containerd, snapshotter: str, writes: WriteBack, boot_id: str) -> None:
    """What an earlier agent of this boot has committed is in the page cache at least; not what is in use and stays."""
    labelled = await containerd.snapshots.list(snapshotter, [f'labels."{UNSYNCED}"'])
    rest = [found.name for found in labelled if believed(found.labels.get(UNSYNCED), boot_id)]
    try:
        await make_durable(containerd, snapshotter, writes, boot_id, rest)
    except PullError as error:
        if error.reason != CANNOT_SYNC:
            raise
        # They can be used, as those of pulls that cannot sync either; the next boot makes them anew.
        log.warning("layers stay unsynced", layers=len(rest), error=error.message)


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
