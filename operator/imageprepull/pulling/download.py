"""One blob from the registry into its spool file: resumes after faults, verifies, gives up by class of error.

Below it `registry.client` opens one stream at an offset; above it `blobs` makes sure that each digest has one
download only, whoever asks for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import structlog

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.retry import RetryState
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.spool import SpoolFile
from imageprepull.registry.blobs import BlobStream
from imageprepull.registry.client import RegistryClient

T = TypeVar("T")
log = structlog.get_logger(__name__)

Received = Callable[[str, int, int], None]
"""Told (host, bytes that came, contiguous bytes held): after each batch, and with 0 bytes when a stream begins."""


async def download(
    registry: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    spool: SpoolFile,
    *,
    limiter: Limiter,
    priority: int,
    settings: PullSettings,
    received: Received,
) -> None:
    """Fill `spool` and verify it. A slot of the limiter is held while bytes flow, not while waiting to retry.

    Raises:
        PullError: DigestMismatch after one more download from zero, or what the registry said last.
    """
    retry = RetryState()
    mismatched = False
    origins: set[str] = set()
    while True:
        before = spool.held.held
        try:
            async with limiter.slot(priority):
                if not spool.opened:
                    # Not before: slots are asked for in the order in which downloads start, lowest layer first.
                    await _in_thread(spool.open)
                    before = spool.held.held
                    received("", 0, spool.held.frontier)
                if not spool.held.complete:
                    source = registry.open_blob(reference, descriptor, spool.held.frontier)
                    await _attempt(
                        source,
                        reference,
                        descriptor,
                        spool,
                        settings=settings,
                        received=received,
                        origins=origins,
                    )
            if await _in_thread(spool.matches):
                return
            await _in_thread(spool.reset)
            for origin in origins:
                registry.distrust(origin, descriptor.digest)
            # Bytes of an earlier life or of another mirror may be to blame once; twice it is the registry.
            failure = PullError(
                "DigestMismatch",
                f"the blob {descriptor.digest} of {reference} has another digest than its name says; "
                "push the image again or repair the registry's storage",
                permanent=mismatched,
            )
            mismatched = True
        except Exception as error:  # noqa: BLE001 - as_pull_error raises again what is no failure of the pull.
            failure = as_pull_error(error, f"blob {descriptor.digest}")
        delay = retry.decide(
            failure,
            gained=spool.held.held > before,
            chance=random.random(),  # noqa: S311 - jitter, not a secret.
            settings=settings,
        )
        if delay is None:
            raise failure
        log.info(
            "retrying a blob",
            blob=descriptor.digest,
            held=spool.held.held,
            failures=retry.failures,
            delay=round(delay, 2),
            reason=failure.reason,
            error=failure.message,
        )
        await asyncio.sleep(delay)


async def _attempt(
    source: AbstractAsyncContextManager[BlobStream],
    reference: Reference,
    descriptor: Descriptor,
    spool: SpoolFile,
    *,
    settings: PullSettings,
    received: Received,
    origins: set[str],
) -> None:
    """One stream, from the first missing byte to the end of the blob."""
    async with source as stream:
        origins.add(stream.origin)
        offset = stream.offset
        batch: list[bytes] = []
        gathered = 0
        clock = asyncio.get_running_loop().time
        written = clock()
        received(stream.host, 0, spool.held.frontier)
        try:
            async for chunk in stream:
                batch.append(chunk)
                gathered += len(chunk)
                if offset + gathered > descriptor.size:
                    batch.clear()
                    await _in_thread(spool.reset)
                    raise PullError(
                        "SizeMismatch",
                        f"the blob {descriptor.digest} of {reference} is longer than the {descriptor.size} "
                        "bytes of its descriptor; push the image again",
                        permanent=True,
                    )
                if gathered >= settings.write_batch or clock() - written > settings.longest_batch:
                    await _write(spool, offset, batch, settings)
                    received(stream.host, gathered, spool.held.frontier)
                    offset, batch, gathered, written = offset + gathered, [], 0, clock()
        finally:
            # What came before a fault is good: it is hashed as part of the whole.
            if batch:
                await _write(spool, offset, batch, settings)
                received(stream.host, gathered, spool.held.frontier)
    if not spool.held.complete:
        raise PullError(
            "ShortBody", f"the registry ended the blob {descriptor.digest} after {spool.held.frontier} bytes"
        )


async def _in_thread(work: Callable[[], T]) -> T:
    """Work on the spool file in a thread; a cancellation waits for it, since its file would be closed under it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


async def _write(spool: SpoolFile, offset: int, batch: list[bytes], settings: PullSettings) -> None:
    await _in_thread(lambda: spool.write(offset, batch, note_every=settings.checkpoint))
