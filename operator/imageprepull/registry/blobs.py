"""A blob while it comes: chunks in order, its end given by the descriptor and never by the connection."""

from __future__ import annotations

import re

from imageprepull.registry.errors import ErrorKind
from imageprepull.registry.transport import Answer

CHUNK = 256 * 1024
_PARTIAL = 206
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class BlobStream:
    """`async for chunk in stream`: bytes from `offset` to the end asked for, each chunk at most 256 KiB.

    `host` sent the bytes; `origin` is the registry host that was asked, and that may have redirected to `host`.
    `offset` is 0 when the host ignored the range that was asked for. `ranged`: it answered 206, so other parts can be
    asked for at the same time. Iteration raises RegistryError when the body
    is short or too long, the connection breaks, or no byte came for the stall timeout.
    """

    def __init__(self, answer: Answer, offset: int, end: int, origin: str, *, goes_on: bool = False) -> None:
        self.host = answer.host
        self.origin = origin
        self.offset = offset
        self.ranged = answer.status == _PARTIAL
        self.left = end - offset
        self._answer = answer
        self._goes_on = goes_on  # A whole blob came where a part of it was asked for.

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        if self.left == 0:
            # All bytes are here: waiting for the end of a body that never ends would only stall.
            if not self._goes_on and self._answer.has_more():
                raise self._answer.fault(
                    "the body is longer than the descriptor says", "SizeMismatch", ErrorKind.PERMANENT
                )
            raise StopAsyncIteration
        chunk = await self._answer.chunk(min(CHUNK, self.left))
        if not chunk:
            raise self._answer.fault(
                f"the body ended {self.left} bytes early", "ShortBody", ErrorKind.TEMPORARY
            )
        self.left -= len(chunk)
        return chunk


def range_matches(content_range: str, offset: int, end: int, size: int) -> bool:
    """Whether a 206 is exactly the part asked for, of a blob of the right size."""
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        return False
    first, last, total = found.groups()
    return int(first) == offset and int(last) == end - 1 and total in ("*", str(size))
