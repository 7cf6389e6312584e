"""One request for a range of a blob: its bytes are gathered into batches and written where they belong.

Below it `registry.client` opens the stream; `filling` says which range, and decides what a fault means.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.pool import Pool
from imageprepull.pulling.ranges import Span
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.spool import SpoolFile
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.registry.blobs import BlobStream
from imageprepull.registry.client import RegistryClient


class Listener(Protocol):
    """Who wants to know how a blob comes. Called on the event loop."""

    @property
    def priority(self) -> int:
        """Smaller for what blocks a chain; may change at any time."""

    def opened(self) -> None:
        """The file is open and holds what an earlier attempt left."""

    def received(self, host: str, count: int) -> None:
        """`count` more bytes came from `host`, 0 when a stream begins; the range map knows of them."""

    def restarted(self) -> None:
        """All bytes were thrown away; the file is a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A blob to be fetched: from where, into what, over whose connections, and who is told."""

    registry: RegistryClient
    reference: Reference
    descriptor: Descriptor
    spool: SpoolFile
    pool: Pool
    settings: PullSettings
    listener: Listener


class Owner(Protocol):
    """Whoever began the connection."""

    async def answered(self, origin: str, *, ranged: bool | None) -> None:
        """A stream begins. `ranged`: whether it is the range asked for, None when the whole blob was.

        Where the whole blob comes instead of a range, it is read to its end, and no other connection of the blob
        writes any more when this returns.
        """

    def received(self, host: str, count: int) -> None:
        """A batch was written; or, with 0 bytes, none yet."""


async def fetch_span(order: Order, owner: Owner, span: Span) -> None:
    """Fetch `span`, or the whole blob where the host does not do ranges, into the spool file.

    Raises:
        RegistryError, OSError: the request or the disk failed. What came before is written.
        PullError: ShortBody.
    """
    (start, end), size = span, order.descriptor.size
    whole = span == (0, size)
    length = None if end == size else end - start
    async with order.registry.open_blob(order.reference, order.descriptor, start, length=length) as stream:
        if not whole and not stream.ranged:
            # A cache that is being filled, or a server without ranges. What comes is the blob from its first byte;
            # to ask again would make the cache fetch it again.
            start, end = 0, size
            stream.left = size
        await owner.answered(stream.origin, ranged=None if whole else stream.ranged)
        owner.received(stream.host, 0)
        await _read(order, owner, stream)
    if next(order.spool.held.missing(start, end), None) is not None:
        raise PullError(
            "ShortBody",
            f"the registry ended the blob {order.descriptor.digest} after {order.spool.held.frontier} bytes",
            resumable=True,
        )
    # Whatever kills this process now: a range that has come is not fetched again.
    await in_thread(order.spool.note)
    reached(Step.FETCHED, f"{order.descriptor.digest} {start}-{end}")


async def _read(order: Order, owner: Owner, stream: BlobStream) -> None:
    spool, settings = order.spool, order.settings
    offset = stream.offset
    batch: list[bytes] = []
    gathered = 0
    clock = asyncio.get_running_loop().time
    written = clock()

    async def write() -> None:
        nonlocal offset, batch, gathered, written
        at, chunks, count = offset, batch, gathered
        offset, batch, gathered = offset + gathered, [], 0
        try:
            await in_thread(lambda: spool.write(at, chunks, note_every=settings.checkpoint))
        finally:
            # Also when cancelled meanwhile: the bytes came, and are there.
            owner.received(stream.host, count)
        written = clock()

    try:
        async for chunk in stream:
            batch.append(chunk)
            gathered += len(chunk)
            if gathered >= settings.write_batch or clock() - written > settings.longest_batch:
                await write()
    finally:
        # What came before a fault is good: it is hashed as part of the whole.
        if batch:
            await write()
