"""PAX records: parsed, checked and merged into the header they precede, as Go's archive/tar does."""

from __future__ import annotations

from collections.abc import Callable

from imageprepull.unpacking.headers import Header
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.numbers import parse_decimal, parse_time

XATTR = b"SCHILY.xattr."
SPARSE_OFFSET, SPARSE_BYTES, SPARSE_MAP = b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.map"
_NO_NUL_VALUE = frozenset({b"path", b"linkpath", b"uname", b"gname"})

_FIELDS = {
    b"path": "name",
    b"linkpath": "linkname",
    b"uid": "uid",
    b"gid": "gid",
    b"mtime": "mtime",
    b"atime": "access_time",
    b"size": "size",
}
_PARSERS: dict[str, Callable[[bytes], bytes | int]] = {
    "name": bytes,
    "linkname": bytes,
    "uid": parse_decimal,
    "gid": parse_decimal,
    "mtime": parse_time,
    "access_time": parse_time,
    "size": parse_decimal,
}


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header; a later one replaces an earlier of its key. Raises Refused."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    try:
        while position < len(data):
            key, value, position = _record(data, position)
            if key in (SPARSE_OFFSET, SPARSE_BYTES):
                # Format 0.0 repeats its keys, in turns.
                if key != (SPARSE_BYTES if len(sparse) % 2 else SPARSE_OFFSET) or b"," in value:
                    raise ValueError("sparse records out of order")  # noqa: TRY301 - one handler names the tar.
                sparse.append(value)
            else:
                records[key] = value
    except ValueError as error:
        raise Refused("InvalidLayer", f"the tar has an invalid PAX header: {error}") from None
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def _record(data: bytes, start: int) -> tuple[bytes, bytes, int]:
    blank = data.find(b" ", start)
    if blank < 0:
        raise ValueError("no length")
    length = parse_decimal(data[start:blank])
    end = start + length
    if length < 5 or end > len(data) or end <= blank + 1 or data[end - 1 : end] != b"\n":
        raise ValueError("wrong length")
    key, equals, value = data[blank + 1 : end - 1].partition(b"=")
    if not equals or not key or b"\0" in (value if key in _NO_NUL_VALUE else key):
        raise ValueError("not key=value")
    return key, value, end


def merge(header: Header, records: dict[bytes, bytes]) -> None:
    """Let the records overrule the header; empty values count as not given. Raises Refused."""
    try:
        for key, value in records.items():
            if value and (field := _FIELDS.get(key)):
                setattr(header, field, _PARSERS[field](value))
        if changed := records.get(b"ctime"):
            parse_time(changed)  # not used, and refused where it is none.
    except ValueError as error:
        message = f"the tar has an invalid PAX record: {error}"
        raise Refused("InvalidLayer", message, entry=header.name) from None
    header.pax = records


def xattrs(records: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Names and values of the extended attributes."""
    return [(key[len(XATTR) :], value) for key, value in records.items() if key.startswith(XATTR)]
