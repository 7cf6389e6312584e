"""The tar as a stream of chunks, cut into blocks and file contents without copying what need not be copied."""

from __future__ import annotations

import os
from collections.abc import Callable

from imageprepull.unpacking.headers import BLOCK
from imageprepull.unpacking.jobs import Refused


def _truncated() -> Refused:
    return Refused("InvalidLayer", "the tar ends in the middle")


class Stream:
    """Reads what `chunk` gives until it gives b""; `wrote`, if any, is told of bytes that went into files."""

    def __init__(self, chunk: Callable[[], bytes], wrote: Callable[[int], None] | None = None) -> None:
        self._source = chunk
        self._ended = False
        self._wrote = wrote
        self._held = b""
        self._position = 0

    def block(self) -> bytes:
        """The next 512 bytes, or b"" at the end. Raises Refused where the end cuts a block."""
        start = self._position
        end = start + BLOCK
        if end <= len(self._held):
            self._position = end
            return self._held[start:end]
        found = self._gather(BLOCK)
        if len(found) % BLOCK:
            raise _truncated()
        return found

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises Refused."""
        found = self._gather(count)
        if len(found) < count:
            raise _truncated()
        return found

    def copy(self, count: int, descriptor: int) -> None:
        """Write the next `count` bytes to a file. Raises Refused, OSError."""
        while count:
            piece = self._piece(count)
            count -= len(piece)
            if self._wrote is not None:
                self._wrote(len(piece))
            while piece:
                piece = piece[os.write(descriptor, piece) :]

    def skip(self, count: int) -> None:
        """Pass over bytes. Raises Refused."""
        while count:
            count -= len(self._piece(count))

    def pad(self, count: int) -> bool:
        """Pass over padding; False where the stream ends before it does."""
        position = self._position + count
        if position <= len(self._held):
            self._position = position
            return True
        return len(self._gather(count)) == count

    def drain(self) -> None:
        """Read on to the end."""
        self._held = b""
        self._position = 0
        while self._chunk():
            pass

    def _chunk(self) -> bytes:
        """The next chunk; the source is not asked again after its end."""
        chunk = b"" if self._ended else self._source()
        self._ended = not chunk
        return chunk

    def _piece(self, most: int) -> memoryview:
        """At least one byte of what comes next. Raises Refused at the end."""
        if self._position == len(self._held):
            self._held = self._chunk()
            self._position = 0
            if not self._held:
                raise _truncated()
        start = self._position
        self._position = min(start + most, len(self._held))
        return memoryview(self._held)[start : self._position]

    def _gather(self, count: int) -> bytes:
        """`count` bytes or what is left."""
        parts = []
        while count:
            if self._position == len(self._held):
                self._held = self._chunk()
                self._position = 0
                if not self._held:
                    break
            part = self._held[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)
