"""Keeping the compressed layers: from the spool into the content store, before or after the image is ready.

The largest cost that a pull can put off: nobody who uses the image needs them. The manifest's labels name them from
the start, so that the runtime keeps them as soon as they are there, and misses nothing while they are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping

from imageprepull.pulling.cleanup import finish_anyway, patiently
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.leases import discard_lease
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.steps import Step, reached
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists

KEPT_AT_ONCE = 2
"""Ingests at once: one keeps a core of the daemon busy with hashing and another of ours with sending."""


async def keep_now(containerd: Containerd, blobs: LayerBlobs, lease: str = "") -> None:
    """Ingest what the spool has and the content store lacks; `containerd` is bound to the pull's lease or `lease`.

    Raises:
        BaseExceptionGroup: with the first failure; what was ingested before stays.
    """
    slots = asyncio.Semaphore(KEPT_AT_ONCE)

    async def keep(digest: str) -> None:
        async with slots:
            await blobs.ingest(containerd, digest, lease, unpacked=True)
            await blobs.release(digest)

    async with asyncio.TaskGroup() as group:
        for digest in blobs.spooled():
            group.create_task(keep(digest), name=f"keep {digest}")


async def keep_later(machinery: Machinery, blobs: LayerBlobs, labels: Mapping[str, str]) -> None:
    """The same when the image is ready and the pull's lease is gone: under one of its own, until they are there.

    It names no image: a next life of the agent discards it, with what is half ingested.

    Raises:
        BaseExceptionGroup: as `keep_now`.
        RuntimeFault: the runtime does not answer.
    """
    if not blobs.spooled():
        return
    lease = f"imageprepull-blobs-{secrets.token_hex(12)}"
    own = {key: value for key, value in labels.items() if key != LEASE_IMAGE}
    containerd, settings = machinery.containerd, machinery.settings

    async def keep() -> None:
        with contextlib.suppress(AlreadyExists):  # at a second try
            await containerd.leases.create(lease, own, settings.lease_seconds)
        reached(Step.KEEPING, lease)
        await keep_now(containerd.with_lease(lease), blobs, lease)

    try:
        await patiently(keep, settings.settle_patience)
    finally:
        discarding = patiently(lambda: discard_lease(containerd, lease), settings.cleanup_timeout)
        await finish_anyway(discarding, settings.cleanup_timeout)
    reached(Step.KEPT, lease)
