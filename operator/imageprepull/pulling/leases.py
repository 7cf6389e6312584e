"""The lease that keeps what a pull has brought alive until image records do: made, adopted, prolonged."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from imageprepull.pulling.cleanup import finish_anyway, patiently
from imageprepull.pulling.labels import EXTRACT, LEASE_IMAGE
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists, LeaseGone, NotFound
from imageprepull.runtime.labels import GC_EXPIRE
from imageprepull.runtime.leases import Lease, LeasedResource

INGESTS = "ingests"
SNAPSHOTS = "snapshots/"


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Whose lease it is and how long it lasts, in seconds."""

    id: str
    image: str
    labels: dict[str, str]
    seconds: float

    @property
    def all_labels(self) -> dict[str, str]:
        """The owner's labels and the image's."""
        return {**self.labels, LEASE_IMAGE: self.image}


@asynccontextmanager
async def short_lease(
    containerd: Containerd,
    purpose: str,
    labels: Mapping[str, str],
    *,
    seconds: float = 600.0,
    cleanup: float = 30.0,
    sync: bool = False,
) -> AsyncIterator[Containerd]:
    """The connection bound to a lease for the time of the block; afterwards it is discarded, whatever happened.

    `labels` say whose it is, should nobody come to discard it; it expires after `seconds`. `cleanup`: how long the
    end waits for a daemon that is away. `sync`: it ends with a collection.

    Raises:
        RuntimeFault: the runtime does not answer.
    """
    lease = f"imageprepull-{purpose}-{secrets.token_hex(8)}"
    try:
        # In here: the daemon may have made it, though its answer was lost.
        await containerd.leases.create(lease, labels, seconds)
        yield containerd.with_lease(lease)
    finally:
        discarding = patiently(lambda: discard_lease(containerd, lease, sync=sync), cleanup)
        await finish_anyway(discarding, cleanup)


async def open_lease(containerd: Containerd, terms: LeaseTerms) -> None:
    """Create the lease, or adopt the one that an earlier attempt left.

    An adopted lease with less than half of its time left is replaced: containerd cannot prolong one.
    """
    for _ in range(2):
        try:
            await containerd.leases.create(terms.id, terms.all_labels, terms.seconds)
        except AlreadyExists:
            found = await find_lease(containerd, terms.id)
            if found is None:  # collected in between.
                continue
            await remove_active(containerd, terms.id)
            if is_aged(found, terms.seconds, time.time()):
                await _replace(containerd, terms)
        return


def is_aged(lease: Lease, seconds: float, now: float) -> bool:
    """Whether less than half of the time that we give is left. A lease without expiry never ages."""
    expiry = expires_at(lease)
    return expiry is not None and expiry - now < seconds / 2


def expires_at(lease: Lease) -> float | None:
    """When a collection may take the lease, in seconds since the epoch; None without a label that can be read."""
    try:
        return datetime.fromisoformat(lease.labels.get(GC_EXPIRE, "")).timestamp()
    except ValueError:
        return None


async def find_lease(containerd: Containerd, lease_id: str) -> Lease | None:
    """The lease of that ID."""
    found = await containerd.leases.list([f"id=={lease_id}"])
    return next((lease for lease in found if lease.id == lease_id), None)


async def drop_lease(containerd: Containerd, lease_id: str, *, sync: bool = False) -> None:
    """Delete a lease, if it is still there. What it alone held goes at the next collection; `sync`: within this call."""
    try:
        await containerd.leases.delete(lease_id, sync=sync)
    except (NotFound, LeaseGone):
        return


async def discard_lease(containerd: Containerd, lease_id: str, *, sync: bool = False) -> list[str]:
    """Delete a lease with its active snapshots and the half-written ingests that nobody else holds; their refs.

    An ingest without a lease stays for a day, and its ref's name is shared: a kubelet may have gone on with it, and
    then its own lease holds it too.
    """
    await remove_active(containerd, lease_id)
    mine = await _held(containerd, lease_id, INGESTS)
    if mine:
        for other in await containerd.leases.list():
            if other.id != lease_id:
                mine -= await _held(containerd, other.id, INGESTS)
    for ref in sorted(mine):
        await containerd.content.abort(ref)
    await drop_lease(containerd, lease_id, sync=sync)
    return sorted(mine)


async def remove_active(containerd: Containerd, lease_id: str) -> None:
    """Remove the active snapshots of a lease, which an attempt that could not clean up has left.

    Nobody may be working under the lease.
    """
    for resource in await _resources(containerd, lease_id):
        snapshotter = resource.type.removeprefix(SNAPSHOTS)
        if snapshotter != resource.type and resource.id.startswith(EXTRACT):
            try:
                await containerd.snapshots.remove(snapshotter, resource.id)
            except NotFound:
                continue


async def _held(containerd: Containerd, lease_id: str, kind: str) -> set[str]:
    return {found.id for found in await _resources(containerd, lease_id) if found.type == kind}


async def _resources(containerd: Containerd, lease_id: str) -> Sequence[LeasedResource]:
    try:
        return await containerd.leases.resources(lease_id)
    except (NotFound, LeaseGone):
        return []


async def _replace(containerd: Containerd, terms: LeaseTerms) -> None:
    """Move everything over a second lease, so that nothing is without one at any time."""
    bridge = f"{terms.id}-bridge"
    await drop_lease(containerd, bridge)
    await containerd.leases.create(bridge, terms.all_labels, terms.seconds)
    await _copy(containerd, terms.id, bridge)
    await drop_lease(containerd, terms.id)
    await containerd.leases.create(terms.id, terms.all_labels, terms.seconds)
    await _copy(containerd, bridge, terms.id)
    await drop_lease(containerd, bridge)


async def _copy(containerd: Containerd, source: str, target: str) -> None:
    for resource in await containerd.leases.resources(source):
        await containerd.leases.add_resource(target, resource.type, resource.id)
