"""A blob while it comes: chunks in order, with the end given by the descriptor, never by the connection."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

CHUNK = 256 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class BlobStream:
    """`async for chunk in stream`: bytes from `offset` to the end asked for, each chunk at most 256 KiB.

    `offset` is 0 when the host ignored the range that was asked for. Iteration raises RegistryError when the body
    is short or too long, the connection breaks, or no byte came for the stall timeout.
    """

    def __init__(self, host: str, offset: int, length: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        self.host = host
        self.offset = offset
        self._left = length
        self._read = read

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        # One byte more than what is left tells a body that is too long, without ever waiting for the end of the
        # connection: `read` returns what is there, and nothing is asked for once all has come.
        if self._left == 0:
            raise StopAsyncIteration
        chunk = await self._read(CHUNK)
        self._left -= len(chunk)
        return chunk

    @property
    def left(self) -> int:
        """Bytes still to come; negative when more came than the descriptor promised."""
        return self._left


def range_matches(content_range: str, offset: int, end: int, size: int) -> bool:
    """Whether a 206 is the part asked for: its first byte, not past the last one, and of a blob of the right size."""
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        return False
    first, last, total = found.groups()
    return int(first) == offset and int(last) == end - 1 and total in ("*", str(size))
