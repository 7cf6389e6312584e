"""The lease that keeps what a pull has brought alive until image records do: made, adopted, prolonged."""

from __future__ import annotations

import time
from dataclasses import dataclass

from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists, LeaseGone, NotFound
from imageprepull.runtime.leases import Lease


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
            if is_aged(found, terms.seconds, time.time()):
                await _replace(containerd, terms)
        return


def is_aged(lease: Lease, seconds: float, now: float) -> bool:
    """Whether less than half of the time that we give is left. A lease without expiry never ages."""
    return lease.expires_at is not None and lease.expires_at.timestamp() - now < seconds / 2


async def find_lease(containerd: Containerd, lease_id: str) -> Lease | None:
    """The lease of that ID."""
    found = await containerd.leases.list([f"id=={lease_id}"])
    return next((lease for lease in found if lease.id == lease_id), None)


async def drop_lease(containerd: Containerd, lease_id: str, *, sync: bool = False) -> None:
    """Delete a lease, if it is still there. `sync` waits for a collection of what it held."""
    try:
        await containerd.leases.delete(lease_id, sync=sync)
    except (NotFound, LeaseGone):
        return


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
