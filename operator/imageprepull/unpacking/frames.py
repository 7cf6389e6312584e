"""The frames of a zstd stream, followed by their headers alone (RFC 8878): where they end and what window they ask for.

python-zstandard's readers take a stream cut in the middle for its end, so completeness is established here.
"""

from __future__ import annotations

from contextlib import suppress

from imageprepull.unpacking.jobs import Refused

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_SKIPPABLE_MASK = 0xFFFFFFF0
_RLE = 1
_DICTIONARY_BYTES = (0, 1, 2, 4)
_SIZE_BYTES = (0, 2, 4, 8)
_LONGEST_HEADER = 18
_ANY_WINDOW = 1 << 64
WIDER_WINDOW = "WiderWindow"
"""The reason of a refusal that is none of the layer's: with a wider window it may be unpacked."""


def is_skippable(head: bytes) -> bool:
    """Whether a stream starts with a skippable frame."""
    return len(head) >= 8 and int.from_bytes(head[:4], "little") & _SKIPPABLE_MASK == _SKIPPABLE


def first_window(head: bytes) -> int:
    """The widest window, in bytes, of the frames that begin in a blob's first bytes; 0 where it is no zstd stream."""
    walker = FrameWalker(_ANY_WINDOW)
    if is_skippable(head) or int.from_bytes(head[:4], "little") == _MAGIC:
        with suppress(Refused):  # whoever unpacks it will say so.
            walker.feed(head)
    return walker.widest


class FrameWalker:
    """`feed` all bytes in any pieces, then `finish`; `widest` is the widest window of the frames so far, in bytes.

    More than `most_window` is left to others. More than `granted` too, unless whoever unpacks is granted more.
    """

    def __init__(self, most_window: int, granted: int = _ANY_WINDOW) -> None:
        self.widest = 0
        self._most_window = most_window
        self._granted = granted
        self._held = b""
        self._skip = 0
        self._in_frame = False
        self._checksum = False

    def feed(self, data: bytes) -> None:
        """Follow the frames through the next bytes. Raises Refused."""
        position = 0
        if self._held:
            data, self._held = self._held + data, b""
        while True:
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                if self._skip:
                    return
            taken = self._block(data, position) if self._in_frame else self._frame(data, position)
            if not taken:
                self._held = data[position:]
                return
            position += taken

    def finish(self) -> None:
        """The stream has ended. Raises Refused where it may not."""
        if self._held or self._skip or self._in_frame:
            raise Refused("InvalidLayer", "the zstd stream ends in the middle of a frame")

    def _block(self, data: bytes, position: int) -> int:
        """The bytes of a block's header, or 0 when they are not there yet."""
        if len(data) - position < 3:
            return 0
        header = int.from_bytes(data[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        self._skip = 1 if kind == _RLE else size
        if last:
            self._in_frame = False
            self._skip += 4 * self._checksum
        return 3

    def _frame(self, data: bytes, position: int) -> int:
        """The bytes of a frame's header, or 0 when they are not there yet."""
        head = data[position : position + _LONGEST_HEADER]
        if len(head) < 5:
            return 0
        magic = int.from_bytes(head[:4], "little")
        if magic & _SKIPPABLE_MASK == _SKIPPABLE:
            if len(head) < 8:
                return 0
            self._skip = int.from_bytes(head[4:8], "little")
            return 8
        if magic != _MAGIC:
            raise Refused("InvalidLayer", "there is something else behind the zstd stream")
        flags = head[4]
        single = flags >> 5 & 1
        size_bytes = _SIZE_BYTES[flags >> 6] or single
        length = 5 + (not single) + _DICTIONARY_BYTES[flags & 3] + size_bytes
        if len(head) < length:
            return 0
        if single:
            window = int.from_bytes(head[length - size_bytes : length], "little") + 256 * (size_bytes == 2)
        else:
            base = 1 << (10 + (head[5] >> 3))
            window = base + (base >> 3) * (head[5] & 7)
        self.widest = max(self.widest, window)
        if window > min(self._most_window, self._granted):
            reason = "Unsupported" if window > self._most_window else WIDER_WINDOW
            raise Refused(reason, f"the zstd stream asks for a window of {window} bytes")
        self._in_frame = True
        self._checksum = bool(flags >> 2 & 1)
        return length
