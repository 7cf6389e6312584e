"""One 512-byte header block of a tar, read as Go's archive/tar reads it: V7, USTAR/PAX, GNU and STAR.

`archive` feeds it and adds what PAX and GNU records say. A hot place: 200,000 headers are common.
"""

from __future__ import annotations

import struct
import zlib

from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.numbers import NANO, parse_numeric, parse_octal

BLOCK = 512
REGULAR, REGULAR_V7, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0\x00123456"
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"xgLK"
HEADER_ONLY = frozenset({LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO})
"""Types that no data follows, whatever their size says."""

# name mode uid gid size mtime checksum type linkname magic version (uname gname) major minor prefix
_FIELDS = struct.Struct("100s8s8s8s12s12s8sB100s6s2s64x8s8s155s12x")
_NUMBERS: dict[bytes, int] = {}
_MAX_NUMBERS = 50_000
# adler32 starts with 1 and wraps at 65521; a block of ASCII sums up to less.
_BLANK_CHECKSUM = 8 * ord(" ") - 1


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
    (
        name, mode, uid, gid, size, mtime, checksum, kind, linkname, magic, version, major, minor, prefix,
    ) = _FIELDS.unpack(block)  # fmt: skip
    header = Header()
    try:
        _check(block, checksum)
        header.mode = _number(mode)
        header.uid = _number(uid)
        header.gid = _number(gid)
        header.mtime = _number(mtime) * NANO
        header.size = parse_numeric(size)
        header.major = header.minor = 0
        header.access_time = None
        full = name.partition(b"\0")[0]
        if magic == b"ustar\0":
            header.major, header.minor = _number(major), _number(minor)
            if block[508:] == b"tar\0":
                header.access_time = parse_numeric(block[476:488]) * NANO
                parse_numeric(block[488:500])
                prefix = prefix[:131]
            if prefix[0]:
                full = prefix.partition(b"\0")[0] + b"/" + full
        elif magic == b"ustar " and version == b" \0":
            header.major, header.minor = _number(major), _number(minor)
            full = _gnu(header, block, prefix, full)
    except ValueError as error:
        raise Refused("InvalidLayer", f"the tar has an invalid header: {error}", entry=name) from None
    header.name = full
    header.linkname = linkname.partition(b"\0")[0]
    header.type = kind
    header.pax = None
    return header


def is_old_gnu(block: bytes) -> bool:
    """Whether a block has GNU's own format."""
    return block[257:265] == b"ustar  \0"


def _number(field: bytes) -> int:
    """A field whose values repeat: parsed once each."""
    value = _NUMBERS.get(field)
    if value is None:
        value = parse_numeric(field)
        if len(_NUMBERS) > _MAX_NUMBERS:
            _NUMBERS.clear()
        _NUMBERS[field] = value
    return value


def _check(block: bytes, checksum: bytes) -> None:
    wanted = parse_octal(checksum)
    if block.isascii():
        # The sum by adler32: a tenth of the time of sum(), and exact here.
        found = (zlib.adler32(block) & 0xFFFF) - sum(checksum) + _BLANK_CHECKSUM
        if wanted == found:
            return
    else:
        rest = block[:148] + b" " * 8 + block[156:]
        unsigned = sum(rest)
        # Old tars summed signed characters.
        if wanted in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)):
            return
    raise ValueError("its checksum is wrong")


def _gnu(header: Header, block: bytes, prefix: bytes, name: bytes) -> bytes:
    """GNU keeps times where USTAR has the prefix; tars of an old Go writer have a prefix there all the same."""
    try:
        if block[345]:
            header.access_time = parse_numeric(block[345:357]) * NANO
        if block[357]:
            parse_numeric(block[357:369])
    except ValueError:
        header.access_time = None
        text = prefix.partition(b"\0")[0]
        if text and text.isascii():
            return text + b"/" + name
    return name
