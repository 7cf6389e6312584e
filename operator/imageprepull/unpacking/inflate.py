"""Decompression by the blob's first bytes, as containerd detects it: gzip of several members, zstd of several frames.

`open_inflater` wraps a source of compressed chunks into a source of tar chunks of bounded size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, cast

import zstandard
from isal import igzip_lib

from imageprepull.unpacking.frames import FrameWalker, is_skippable
from imageprepull.unpacking.gzip_header import check_header
from imageprepull.unpacking.jobs import MOST_WINDOW, Limits, Refused

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
CHUNK = 1024 * 1024
"""Bytes per chunk: each one costs a change of threads, and memory for as many as the worker is ahead."""

_Damaged = cast(type[Exception], igzip_lib.IsalError)
Source = Callable[[], bytes]
"""The next bytes, b"" at the end."""


def open_inflater(source: Source, *, detect: bool, limits: Limits, window: int = MOST_WINDOW) -> Source:
    """A source of the tar; `detect`, `limits` and `window` as in `ExtractJob`. Raises Refused, then and while it is read."""
    head = b""
    while detect and len(head) < 10 and (more := source()):
        head += more

    def compressed() -> bytes:
        nonlocal head
        if head:
            first, head = head, b""
            return first
        return source()

    if detect and head.startswith(GZIP):
        return _gzip(compressed)
    if detect and (head.startswith(ZSTD) or is_skippable(head)):
        return _zstd(compressed, limits, window)
    return compressed


def _gzip(source: Source) -> Source:
    """Members one after the other; whatever else follows is refused, as Go's gzip does."""
    pending = _member(b"", source)
    decompressor: Any = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def chunk() -> bytes:
        nonlocal decompressor, pending
        while True:
            if decompressor.eof:
                pending = _member(decompressor.unused_data or pending, source)
                if not pending:
                    return b""
                decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            data = b""
            if pending:
                data, pending = pending, b""
            elif decompressor.needs_input and not (data := source()):
                raise Refused("InvalidLayer", "the gzip stream ends in the middle")
            try:
                found: bytes = decompressor.decompress(data, CHUNK)
            except _Damaged as error:
                raise Refused("InvalidLayer", f"the gzip stream is damaged: {error}") from error
            if found:
                return found

    return chunk


def _member(head: bytes, source: Source) -> bytes:
    """The first bytes of a member, with its whole header if there is so much; b"" at the end. Raises Refused."""
    while not check_header(head) and (more := source()):
        head += more
    return head


def _zstd(source: Source, limits: Limits, window: int) -> Source:
    """All frames; where they end is followed beside the decoder, which does not tell."""
    walker = FrameWalker(limits.zstd_window, window)

    class Watched:
        """The file object that the decoder reads from."""

        def __init__(self) -> None:
            self.left = b""

        def read(self, size: int) -> bytes:
            if not self.left:
                self.left = source()
                walker.feed(self.left)
            taken, self.left = self.left[:size], self.left[size:]
            return taken

    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.zstd_window)
    reader = decompressor.stream_reader(cast(IO[bytes], Watched()), read_size=CHUNK, read_across_frames=True)

    def chunk() -> bytes:
        try:
            found = reader.read(CHUNK)
        except zstandard.ZstdError as error:
            raise Refused("InvalidLayer", f"the zstd stream is damaged: {error}") from error
        if not found:
            walker.finish()
        return found

    return chunk
