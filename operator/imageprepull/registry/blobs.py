"""A blob while it comes: parts in order, its end given by the descriptor and never by the connection."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable

from imageprepull.registry.answer import Answer
from imageprepull.registry.errors import ErrorKind, RegistryError

_PARTIAL = 206
_GZIP = 16 + zlib.MAX_WBITS
ENCODINGS = frozenset({"gzip", "x-gzip"})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
DECODED = 1024 * 1024
"""Bytes that one part may become when it has to be decoded."""

Ended = Callable[[RegistryError | None, bool], None]
"""Told once how a stream ended: its error or None, and whether any byte came."""


class BlobStream:
    """`async for part in stream`: bytes from `offset` to the end asked for, uncopied and as large as they came.

    `host` sent the bytes; `origin` is the registry host that was asked, and that may have redirected to `host`.
    `offset` is 0 when the host ignored the range that was asked for. `ranged`: it answered 206, so other parts can be
    asked for at the same time. Iteration raises RegistryError when the body is short or too long, the connection
    breaks, or no byte came for the stall timeout.
    """

    def __init__(
        self,
        answer: Answer,
        offset: int,
        end: int,
        origin: str,
        *,
        goes_on: bool = False,
        decode: bool = False,
        first_byte: float | None = None,
        ended: Ended | None = None,
    ) -> None:
        self.host = answer.host
        self.origin = origin
        self.offset = offset
        self.ranged = answer.status == _PARTIAL
        self.left = end - offset
        self._answer = answer
        self._goes_on = goes_on  # A whole blob came where a part of it was asked for.
        self._first_byte = first_byte
        self._ended = ended
        self._gained = False
        self._surplus = False
        self._decoder = zlib.decompressobj(_GZIP) if decode else None

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._next()
        except StopAsyncIteration:
            self._end(None)
            raise
        except RegistryError as error:
            self._end(error)
            raise

    async def _next(self) -> bytes:
        if self.left == 0:
            # All bytes are here: waiting for the end of a body that never ends would only stall.
            if not self._goes_on and (self._surplus or self._answer.has_more()):
                raise self._answer.fault(
                    "the body is longer than the descriptor says", "SizeMismatch", ErrorKind.PERMANENT
                )
            raise StopAsyncIteration
        part = await self._part()
        if not part:
            raise self._answer.fault(
                f"the body ended {self.left} bytes early", "ShortBody", ErrorKind.TEMPORARY
            )
        self._gained = True
        if len(part) > self.left:
            part, self._surplus = part[: self.left], True
        self.left -= len(part)
        return part

    async def _part(self) -> bytes:
        if self._decoder is not None:
            return await self._decoded(self._decoder)
        if self._gained or self._first_byte is None:
            return await self._answer.part()
        try:
            async with asyncio.timeout(self._first_byte):
                return await self._answer.part()
        except TimeoutError:
            raise self._answer.fault(
                f"no byte of the body came within {self._first_byte:g} s", "Stalled", ErrorKind.TEMPORARY
            ) from None

    async def _decoded(self, decoder: zlib._Decompress) -> bytes:
        """As `part`, for a body that was compressed on its way; in bounded steps, since a little can become much."""
        while not decoder.eof:
            fed = decoder.unconsumed_tail or await self._answer.part()
            if not fed:
                return decoder.flush()
            try:
                if part := decoder.decompress(fed, DECODED):
                    return part
            except zlib.error as error:
                raise self._answer.fault(
                    f"the body cannot be decoded: {error}", "ProtocolError", ErrorKind.TEMPORARY
                ) from error
        return b""

    def _end(self, error: RegistryError | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error, self._gained)


def range_matches(content_range: str, offset: int, end: int, size: int) -> bool:
    """Whether a 206 is exactly the part asked for, of a blob of the right size."""
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        return False
    first, last, total = found.groups()
    return int(first) == offset and int(last) == end - 1 and total in ("*", str(size))
