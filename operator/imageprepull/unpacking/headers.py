"""One 512-byte header block of a tar, read as Go's archive/tar reads it: V7, USTAR/PAX, GNU and STAR.

`archive` feeds it and adds what PAX and GNU records say. A hot place: 200,000 headers are common.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.numbers import NANO, parse_numeric, parse_octal

T = TypeVar("T")

BLOCK = 512
REGULAR, REGULAR_V7, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0\x00123456"
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"xgLK"
HEADER_ONLY = frozenset({LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO})
"""Types that no data follows, whatever their size says."""

_ENDS = b" \0"
_BLANKS = 8 * ord(" ")
_MAX_KNOWN = 50_000
# What repeats from header to header is parsed once: the fields as they stand, to what they mean.
_OWNERS: dict[bytes, tuple[int, int, int]] = {}
_TIMES: dict[bytes, int] = {}
_DEVICES: dict[bytes, tuple[int, int]] = {}


class Header:
    """An entry. Times in nanoseconds; `access_time` None when it has none; `pax` the records that hold for it."""

    __slots__ = (
        "access_time", "gid", "linkname", "major", "minor", "mode", "mtime", "name", "pax", "size", "type", "uid",
    )  # fmt: skip

    name: bytes
    linkname: bytes
    type: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    access_time: int | None
    major: int
    minor: int
    pax: dict[bytes, bytes] | None


def parse_header(block: bytes) -> Header:
    """The header in a block that is not all zeros. Raises Refused."""
    header = Header()
    end = block.find(b"\0", 0, 100)
    name = block[:end] if end >= 0 else block[:100]
    try:
        _check(block)
        header.mode, header.uid, header.gid = _OWNERS.get(block[100:124]) or _owner(block)
        mtime = _TIMES.get(block[136:148])
        header.mtime = _time(block) if mtime is None else mtime
        size = block[124:135]
        header.size = (
            int(size, 8) if size.isdigit() and block[135] in _ENDS else parse_numeric(block[124:136])
        )
        header.access_time = None
        if block[257:263] == b"ustar\0":
            header.major, header.minor = _DEVICES.get(block[329:345]) or _device(block)
            width = 155
            if block[508:] == b"tar\0":
                header.access_time = parse_numeric(block[476:488]) * NANO
                parse_numeric(block[488:500])
                width = 131
            if block[345]:
                name = block[345 : 345 + width].partition(b"\0")[0] + b"/" + name
        elif block[257:265] == b"ustar  \0":
            header.major, header.minor = _DEVICES.get(block[329:345]) or _device(block)
            if block[345] or block[357]:
                name = _gnu(header, block, name)
        else:
            header.major = header.minor = 0
    except ValueError as error:
        raise Refused("InvalidLayer", f"the tar has an invalid header: {error}", entry=name) from None
    header.name = name
    header.type = block[156]
    header.linkname = block[157:257].partition(b"\0")[0] if block[157] else b""
    header.pax = None
    return header


def _check(block: bytes) -> None:
    """Compare the checksum: of unsigned or, in old tars, signed bytes, its own field taken for blanks."""
    field = block[148:156]
    wanted = parse_octal(field)
    if block.isascii():
        # The sum by adler32, which starts with 1 and wraps at 65521: a tenth of the time of sum(), and exact here.
        found = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(field) & 0xFFFF) + _BLANKS
        if wanted == found:
            return
    else:
        rest = block[:148] + b" " * 8 + block[156:]
        unsigned = sum(rest)
        if wanted in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)):
            return
    raise ValueError("its checksum is wrong")


def _owner(block: bytes) -> tuple[int, int, int]:
    found = (parse_numeric(block[100:108]), parse_numeric(block[108:116]), parse_numeric(block[116:124]))
    return _keep(_OWNERS, block[100:124], found)


def _time(block: bytes) -> int:
    return _keep(_TIMES, block[136:148], parse_numeric(block[136:148]) * NANO)


def _device(block: bytes) -> tuple[int, int]:
    found = (parse_numeric(block[329:337]), parse_numeric(block[337:345]))
    return _keep(_DEVICES, block[329:345], found)


def _keep(known: dict[bytes, T], field: bytes, value: T) -> T:
    """A hostile layer may have another value in every header: what is known stays bounded."""
    if len(known) > _MAX_KNOWN:
        known.clear()
    known[field] = value
    return value


def _gnu(header: Header, block: bytes, name: bytes) -> bytes:
    """GNU keeps times where USTAR has the prefix; tars of an old Go writer have a prefix there all the same."""
    try:
        if block[345]:
            header.access_time = parse_numeric(block[345:357]) * NANO
        if block[357]:
            parse_numeric(block[357:369])
    except ValueError:
        header.access_time = None
        text = block[345:500].partition(b"\0")[0]
        if text and text.isascii():
            return text + b"/" + name
    return name
