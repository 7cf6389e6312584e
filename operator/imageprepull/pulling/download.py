"""One blob from the registry, or from where the runtime has it already, into its spool file, and its digest verified.

Below it `filling` brings the bytes; above it `blobs` makes sure that each digest has one download only, whoever
asks for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from imageprepull.pulling.connection import Order
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.filling import Filling
from imageprepull.pulling.retry import RetryState
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.registry.errors import CORRUPT_UPSTREAM

log = structlog.get_logger(__name__)

Source = Callable[[int], AsyncIterator[bytes]]
"""A blob from an offset on, in pieces, from somewhere nearer than the registry: the content store."""


async def download(order: Order, source: Source | None = None) -> None:
    """Fill the order's spool and verify it. A connection is held while bytes flow, not while waiting to retry.

    With `source` the bytes come from there, and from the registry only those that it fails to bring.

    Raises:
        PullError: CorruptUpstream when every host has served wrong bytes, or what the registry said last.
    """
    spool, digest = order.spool, order.descriptor.digest
    retry = RetryState()
    blamed: set[str] = set()
    while True:
        if source is not None:
            await _copy(order, source)
            source = None
        filling = Filling(order)
        await filling.run()
        # In steps: of a file that an earlier attempt left nothing is hashed yet, and a thread cannot be stopped.
        while spool.unhashed > order.settings.hash_step:
            await in_thread(lambda: spool.hash_on(order.settings.hash_step))
        if spool.matches() if not spool.unhashed else await in_thread(spool.matches):
            reached(Step.SPOOLED, digest)
            return
        await in_thread(spool.reset)
        order.listener.restarted()
        failure = _judged(order, filling, blamed)
        delay = retry.decide(
            failure,
            gained=False,
            chance=random.random(),  # noqa: S311 - jitter, not a secret.
            settings=order.settings,
        )
        if delay is None:
            raise failure
        log.info("downloading a blob again", blob=digest, delay=round(delay, 2), error=failure.message)
        await asyncio.sleep(delay)


def _judged(order: Order, filling: Filling, blamed: set[str]) -> PullError:
    """Whose bytes were wrong; permanent when nobody is left who could have the right ones.

    `blamed` are the hosts that have served wrong bytes to this download; those of `filling` are added.
    """
    digest = order.descriptor.digest
    if filling.fetched < order.descriptor.size:
        # What an earlier life left or the runtime's copy had: none of it is there any more.
        return PullError(
            "DigestMismatch", f"what this node held of the blob {digest} is not what its name says"
        )
    again = bool(blamed)
    # One that was blamed before was asked last: whoever else there is did not have the blob.
    nobody_else = bool(filling.origins & blamed)
    for origin in filling.origins:
        order.registry.distrust(origin, digest)
    blamed |= filling.origins
    # A single host gets a second chance: bytes can be damaged on their way, too.
    final = again and (nobody_else or order.registry.distrusts_all(order.reference, digest))
    return PullError(
        CORRUPT_UPSTREAM,
        f"the blob {digest} of {order.reference} came with another digest than its name says, from "
        f"{', '.join(sorted(blamed))}; push the image again or repair the registry's storage",
        permanent=final,
    )


async def _copy(order: Order, source: Source) -> None:
    """Bring what is missing from `source`; its failure is no failure, since there is the registry."""
    spool, settings = order.spool, order.settings
    loop = asyncio.get_running_loop()
    try:
        if not spool.opened:
            await in_thread(spool.open)
            order.listener.opened()
        offset = spool.held.frontier
        if spool.held.complete:
            return
        async with asyncio.timeout(settings.source_stall) as patience, _closed(source(offset)) as pieces:
            async for piece in pieces:
                chunk = piece[: spool.held.size - offset]
                if not chunk:
                    break
                at = offset
                await in_thread(lambda: spool.write(at, [chunk], note_every=settings.checkpoint))  # noqa: B023 - awaited
                offset += len(chunk)
                order.listener.received("", 0)
                patience.reschedule(loop.time() + settings.source_stall)
    except Exception as error:  # noqa: BLE001 - as_pull_error raises again what is no failure of the pull.
        failure = as_pull_error(error)
        log.warning(
            "a blob is asked of the registry, since the runtime did not give it",
            blob=order.descriptor.digest,
            held=spool.held.held,
            reason=failure.reason,
            error=failure.message,
        )


@asynccontextmanager
async def _closed(pieces: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """End the stream with the block and not when its generator is collected."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
