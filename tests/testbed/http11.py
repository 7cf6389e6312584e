"""As much of HTTP/1.1 as a proxy needs: heads and bodies over asyncio streams."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

CHUNK = 256 << 10
IDLE = 300.0
"""Seconds a peer may send nothing before the connection is given up."""
BODYLESS = frozenset({204, 304})


class BadHead(Exception):
    """Not HTTP/1.1, or too long."""


@dataclass(frozen=True, slots=True)
class Head:
    """The start line and the headers, in the order and spelling they came in."""

    start: str
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """The first value of a header, "" when it is absent."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, *names: str) -> "Head":
        """A copy that lacks these headers."""
        return Head(self.start, tuple(pair for pair in self.headers if pair[0].lower() not in names))

    def with_header(self, name: str, value: str) -> "Head":
        """A copy with one more header."""
        return Head(self.start, (*self.headers, (name, value)))

    def encode(self) -> bytes:
        """As it goes over the wire."""
        lines = [self.start, *(f"{key}: {value}" for key, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, or None when the peer has closed before one began."""
    try:
        data = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadHead("the connection ended within a head") from None
        return None
    except asyncio.LimitOverrunError:
        raise BadHead("a head of more than 64 KiB") from None
    start, *lines = data.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadHead(f"not a header: {line[:100]!r}")
        headers.append((name, value.strip()))
    return Head(start, tuple(headers))


async def read_body(reader: asyncio.StreamReader, head: Head, *, until_close: bool) -> AsyncIterator[bytes]:
    """The body in pieces of at most 256 KiB, chunks undone; nothing when there is none."""
    if "chunked" in head.get("transfer-encoding").lower():
        async for piece in _chunks(reader):
            yield piece
        return
    length = head.get("content-length")
    left = int(length) if length else None
    if left is None and not until_close:
        return
    while left != 0:
        piece = await asyncio.wait_for(reader.read(CHUNK if left is None else min(CHUNK, left)), IDLE)
        if not piece:
            if left is None:
                return
            raise asyncio.IncompleteReadError(b"", left)
        if left is not None:
            left -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), IDLE)
        left = int(line.split(b";")[0], 16)
        if left == 0:
            while await asyncio.wait_for(reader.readuntil(b"\r\n"), IDLE) != b"\r\n":
                pass
            return
        while left:
            piece = await asyncio.wait_for(reader.read(min(CHUNK, left)), IDLE)
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
        await reader.readexactly(2)
