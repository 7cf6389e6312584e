"""What unfinished pulls hold, given back at once: for a node that needs the room more than their next attempts do.

As long as a lease holds their layers nothing else can collect them, the kubelet least of all. Above it the puller,
below it leases and spool, where a pull goes by one name, that of its lease.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.leases import collect, discard_image_lease, unfinished_leases
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.sidecars import all_owners
from imageprepull.pulling.threads import in_thread

log = structlog.get_logger(__name__)


async def give_back(machinery: Machinery, owner: str, only: Collection[str] | None = None) -> int:
    """Drop the leases and spool files of pulls that are not at work, and wait until the runtime has collected.

    Args:
        machinery: the puller's; pulls of this process that are at work keep what they have.
        owner: whose leases, the value of the label `imageprepull.io/lease`.
        only: of these leases; None is all.

    Returns:
        Of how many pulls something is left, since they are at work.

    Raises:
        RuntimeFault, OSError: the runtime or the disk does not do as asked; call again.
    """
    containerd, spool = machinery.containerd, machinery.spool
    leases = await unfinished_leases(containerd, owner)
    # A lease expires; the bytes are as good as they were.
    files_only = await in_thread(lambda: all_owners(spool.folder)) - leases
    found = [lease for lease in (*sorted(files_only), *sorted(leases)) if only is None or lease in only]
    left = len(found)
    for lease in found:
        if lease in machinery.images:
            continue  # it is at work, perhaps since now, and not waited for.
        async with machinery.images.hold(lease):
            # Before its lease may be gone, which would tell the next call of it.
            machinery.uncollected.add(lease)
            # The spool first: without any room the runtime cannot delete a record either.
            await spool.give_up(lease)
            await discard_image_lease(containerd, lease)
        left -= 1
    given = sorted(machinery.uncollected)
    if given:
        # One for all of them: which is the last is known only now, and its lease may have expired.
        await collect(containerd, {LEASE: owner})
        machinery.uncollected.difference_update(given)
        log.info("unfinished pulls have given back what they held", leases=given)
    return left
