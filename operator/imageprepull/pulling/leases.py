"""The lease that keeps what a pull has brought alive until image records do: made, adopted, prolonged."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf

from imageprepull.oci.platform import Platform
from imageprepull.pulling.cleanup import finish_anyway, patiently
from imageprepull.pulling.labels import EXTRACT, LEASE, LEASE_IMAGE, MEMORY
from imageprepull.pulling.request import PullRequest
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists, LeaseGone, NotFound
from imageprepull.runtime.labels import GC_EXPIRE
from imageprepull.runtime.leases import Lease, LeasedResource

CONTENT = "content"
INGESTS = "ingests"
SNAPSHOTS = "snapshots/"
_OURS = "imageprepull-"
_BRIDGE = "-bridge"
_DAY = 24 * 3600.0


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


def lease_terms(
    digest: str,
    labels: Mapping[str, str],
    *,
    snapshotter: str,
    platform: Platform,
    seconds: float,
    shared: bool,
) -> LeaseTerms:
    """The lease under which the image of that digest is pulled, by the owner that `labels` name.

    `shared`: of one name for every attempt, so that the next one finds what an earlier one left (an agent); else of a
    name of its own (each call of the CLI). Whoever is to know such a lease again, the sweep above all, asks here.
    """
    name = secrets.token_hex(16)
    if shared:
        text = f"{labels.get(LEASE, '')}\n{digest}\n{snapshotter}\n{platform}"
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return LeaseTerms(f"{_OURS}{name}", digest, dict(labels), seconds)


def terms_of(request: PullRequest, digest: str, seconds: float) -> LeaseTerms:
    """The lease of a request, whose image turned out to be that digest."""
    return lease_terms(
        digest,
        request.lease_labels,
        snapshotter=request.snapshotter,
        platform=request.platform,
        seconds=seconds,
        shared=request.keep_lease_on_failure,
    )


@contextlib.asynccontextmanager
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
    end waits for a daemon that is away. `sync`: it ends with a collection, which may fail like the rest of the end; who
    has to know calls `collect`.

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


async def open_lease(containerd: Containerd, terms: LeaseTerms) -> float:
    """Create the lease, or adopt the one that an earlier attempt left; returns the seconds that it has left.

    An adopted lease with less than half of its time left is replaced: containerd cannot prolong one.
    """
    for _ in range(2):
        adopted = None
        try:
            await containerd.leases.create(terms.id, terms.all_labels, terms.seconds)
        except AlreadyExists:
            adopted = await find_lease(containerd, terms.id)
            if adopted is None:  # collected in between.
                continue
        bridge = await find_lease(containerd, bridge_of(terms.id))
        if bridge is not None:
            await finish_replacing(containerd, bridge)
        if adopted is not None or bridge is not None:
            await remove_active(containerd, terms.id)
        if adopted is not None:
            now = time.time()
            if not is_aged(adopted, terms.seconds, now):
                expiry = expires_at(adopted)
                return inf if expiry is None else expiry - now
            await _replace(containerd, terms)
        break
    return terms.seconds


def until_renewal(left: float, seconds: float) -> float:
    """For how long work may go on under a lease that has `left` of its `seconds`, before it has to be opened anew.

    A quarter of its time before it expires: then it is aged, and there is time for every try to replace it.
    """
    return left - seconds / 4


async def keep_content(containerd: Containerd, terms: LeaseTerms, digest: str) -> None:
    """Let the lease of a pull to come hold a blob, and all that the blob's labels lead to."""
    await open_lease(containerd, terms)
    await containerd.leases.add_resource(terms.id, CONTENT, digest)


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


def bridge_of(lease_id: str) -> str:
    """The lease that holds everything while another takes the place of this one."""
    return f"{lease_id}{_BRIDGE}"


def is_bridge(lease: Lease) -> bool:
    """Whether somebody died, or the runtime did, while a lease was replaced."""
    return lease.id.startswith(_OURS) and lease.id.endswith(_BRIDGE)


async def unfinished_leases(containerd: Containerd, owner: str) -> set[str]:
    """The leases of that owner under which images are pulled, or were; one that a bridge stands for counts as well."""
    found = await containerd.leases.list([f'labels."{LEASE}"=="{owner}"'])
    return {lease.id.removesuffix(_BRIDGE) for lease in found if LEASE_IMAGE in lease.labels}


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


async def collect(containerd: Containerd, labels: Mapping[str, str]) -> None:
    """Have the runtime collect what nothing holds any more; returns when it has. `labels` say whose the lease is.

    A collection is what the deletion of a lease can wait for, so that one is made to be deleted. Not by the end of a
    `short_lease`, which tells nobody when that fails.

    Raises:
        RuntimeFault: the runtime does not answer; call again.
    """
    async with short_lease(containerd, "collect", labels) as leased:
        await drop_lease(containerd, leased.lease, sync=True)


async def discard_lease(containerd: Containerd, lease_id: str, *, sync: bool = False) -> list[str]:
    """Delete a lease with its active snapshots and the half-written ingests that nobody else holds; their refs.

    An ingest without a lease stays for a day, and its ref's name is shared: a kubelet may have gone on with it, and
    then its own lease holds it too.
    """
    await remove_active(containerd, lease_id)
    mine = await _held(containerd, lease_id, INGESTS)
    if mine:
        for other in await containerd.leases.list():
            if other.id != lease_id and MEMORY not in other.labels:
                mine -= await _held(containerd, other.id, INGESTS)
    for ref in sorted(mine):
        await containerd.content.abort(ref)
    await drop_lease(containerd, lease_id, sync=sync)
    return sorted(mine)


async def discard_image_lease(containerd: Containerd, lease_id: str, *, sync: bool = False) -> list[str]:
    """As `discard_lease`, with what a replacement that was cut off has left."""
    mine = await discard_lease(containerd, bridge_of(lease_id))
    return sorted({*mine, *await discard_lease(containerd, lease_id, sync=sync)})


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


async def finish_replacing(containerd: Containerd, bridge: Lease) -> None:
    """Go on where `_replace` was cut off: the lease holds again whatever its bridge holds, and the bridge is gone.

    The lease itself may be gone by then. It is made as the bridge is, and expires with it.
    """
    lease_id = bridge.id.removesuffix(_BRIDGE)
    expiry = expires_at(bridge)
    left = expiry - time.time() if expiry is not None else _DAY
    labels = {key: value for key, value in bridge.labels.items() if key != GC_EXPIRE}
    with contextlib.suppress(AlreadyExists):
        await containerd.leases.create(lease_id, labels, left)
    await _copy(containerd, bridge.id, lease_id)
    await drop_lease(containerd, bridge.id)


async def _replace(containerd: Containerd, terms: LeaseTerms) -> None:
    """Move everything over a second lease, so that nothing is without one at any time.

    Whoever is cut off in here leaves the bridge to the next `open_lease`, `discard_image_lease` or sweep.
    """
    bridge = bridge_of(terms.id)
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
