"""Blobs of the content store that are not what their digest says: proven by reading them, and removed.

The runtime verifies a blob while it is written and never again: what becomes of the file later, it unpacks, or fails to,
for every image that names it. A blob that it has on record it does not take anew. Without its record the file stays
until a collection, and is believed again by the next who writes that digest (see placing.py): so one is asked for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.leases import short_lease
from imageprepull.pulling.threads import in_thread
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Removed:
    """A damaged blob that is gone: what was wrong with it, in words, and the labels that it bore."""

    damage: str
    labels: Mapping[str, str]


async def remove_damaged(
    containerd: Containerd, digest: str, lease_labels: Mapping[str, str], *, stall: float
) -> Removed | None:
    """Read a blob of a layer, and remove it when it is damaged; None when it is whole, or not there.

    Not for documents: what hangs on their labels would be collected. Leases and labels of others that name the blob
    stay as they are, and hold it again when it is back. Where another namespace has it on record too, the runtime keeps
    the file.

    Args:
        containerd: the runtime.
        digest: the blob's.
        lease_labels: say whose the lease is that the collection needs.
        stall: seconds that the runtime may take for the next piece.

    Raises:
        PullError: RuntimeStalled.
        RuntimeFault: the runtime does not answer, or its disk fails.
    """
    found = await containerd.content.info(digest)
    if found is None:
        return None
    damage = await _damage(containerd, digest, found.size, stall)
    if not damage:
        return None
    # It names no image: a next life of the agent discards it.
    labels = {key: value for key, value in lease_labels.items() if key != LEASE_IMAGE}
    try:
        async with short_lease(containerd, "collect", labels, sync=True):
            await containerd.content.delete(digest)
    except NotFound:
        return None  # somebody else was quicker.
    log.warning("a damaged blob was removed from the runtime", blob=digest, damage=damage)
    return Removed(damage, found.labels)


async def _damage(containerd: Containerd, digest: str, size: int, stall: float) -> str:
    """What is wrong with a blob that the runtime has on record with `size` bytes; "" for nothing."""
    loop = asyncio.get_running_loop()
    hashed, held = hashlib.sha256(), 0
    try:
        async with asyncio.timeout(stall) as patience:
            async for chunk in containerd.content.stream(digest):
                patience.reschedule(None)  # what we take is not the runtime's stall.
                await in_thread(functools.partial(hashed.update, chunk))
                held += len(chunk)
                patience.reschedule(loop.time() + stall)
    except NotFound:
        return "its file is gone"
    except TimeoutError as error:
        raise PullError("RuntimeStalled", f"the runtime gave no byte of {digest} for {stall:g} s") from error
    if f"sha256:{hashed.hexdigest()}" == digest:
        return ""
    return f"its file has {held} of {size} bytes" if held != size else "its file has other bytes"
