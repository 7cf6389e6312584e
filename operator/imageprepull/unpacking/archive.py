"""The entries of a tar one by one, with what GNU and PAX headers say about them, as Go's archive/tar finds them.

`stream` gives the bytes; `tree` makes files of the entries and takes each one's content with `Archive.copy`.
"""

from __future__ import annotations

from imageprepull.unpacking.headers import (
    BLOCK,
    DIRECTORY,
    GNU_LINK,
    GNU_NAME,
    HEADER_ONLY,
    PAX,
    PAX_GLOBAL,
    REGULAR,
    REGULAR_V7,
    Header,
    parse_header,
)
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.pax import merge, parse_records
from imageprepull.unpacking.sparse import Part, read_map, write_sparse
from imageprepull.unpacking.stream import Stream

_ZEROS = bytes(BLOCK)
_LONGEST_SPECIAL = 1 << 20
_SPECIAL = frozenset({PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK})


class Archive:
    """`next` until it returns None; between two calls `copy` at most once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0
        self._sparse: list[Part] | None = None
        self._header: Header | None = None

    def next(self) -> Header | None:
        """The next entry, its unread content passed over; None at the end of the archive. Raises Refused."""
        records: dict[bytes, bytes] | None = None
        long_name = long_link = b""
        while (header := self._block()) is not None:
            kind = header.type
            if kind not in _SPECIAL:
                return self._entry(header, records, long_name, long_link)
            content = self._special(header)
            if kind == PAX_GLOBAL:
                return _global(header, content)
            if kind == PAX:
                records = parse_records(content)
            elif kind == GNU_NAME:
                long_name = content.partition(b"\0")[0]
            else:
                long_link = content.partition(b"\0")[0]
        return None

    def _block(self) -> Header | None:
        """The next header block, wherever the last entry's content ended."""
        stream = self._stream
        if self._left:
            stream.skip(self._left)
            self._left = 0
        if self._padding and not stream.pad(self._padding):
            return None
        self._padding = 0
        block = stream.block()
        if not block:
            return None
        if block == _ZEROS:
            second = stream.block()
            if not second or second == _ZEROS:
                return None
            raise Refused("InvalidLayer", "the tar goes on after one block of zeros")
        header = parse_header(block)
        if header.size < 0 and header.type not in HEADER_ONLY:
            raise _negative(header)
        return header

    def _entry(
        self, header: Header, records: dict[bytes, bytes] | None, long_name: bytes, long_link: bytes
    ) -> Header:
        if records is not None:
            merge(header, records)
        if long_name:
            header.name = long_name
        if long_link:
            header.linkname = long_link
        if header.type == REGULAR_V7:
            # Old tars mark directories by a slash.
            header.type = DIRECTORY if header.name.endswith(b"/") else REGULAR
        self._header = header
        self._sparse = None
        if header.type not in HEADER_ONLY:
            if header.size < 0:
                raise _negative(header)
            self._left = header.size
            self._padding = -header.size % BLOCK
        if records is not None and (found := read_map(header, self._stream)):
            self._sparse, taken = found
            self._left -= taken
        return header

    @property
    def is_sparse(self) -> bool:
        """Whether the entry's content has holes that the tar leaves out."""
        return self._sparse is not None

    def copy(self, descriptor: int) -> None:
        """Write the content of the entry to a file. Raises Refused, OSError."""
        stored, self._left = self._left, 0
        if self._sparse is None:
            self._stream.copy(stored, descriptor)
        elif self._header is not None:
            write_sparse(self._sparse, self._header.size, stored, self._stream, descriptor)

    def drain(self) -> None:
        """Read what stands behind the end of the archive: it belongs to the digest."""
        self._stream.drain()

    def _special(self, header: Header) -> bytes:
        """The content of an entry that describes the next one."""
        size = header.size
        if size > _LONGEST_SPECIAL:
            raise Refused("InvalidLayer", f"a header of {size} bytes", entry=header.name)
        self._padding = -size % BLOCK
        return self._stream.read(size)


def _negative(header: Header) -> Refused:
    return Refused("InvalidLayer", "a negative size", entry=header.name)


def _global(header: Header, content: bytes) -> Header:
    """A global header is an entry of its own to containerd, with the name that its records give it."""
    records = parse_records(content)
    named = Header()
    named.type, named.size, named.linkname = PAX_GLOBAL, 0, b""
    named.mode = named.uid = named.gid = named.mtime = named.major = named.minor = 0
    named.access_time = None
    named.name = records.get(b"path") or header.name
    named.pax = records
    return named
