"""GNU's sparse files in PAX format (0.0, 0.1 and 1.0): which parts of a file are data, the rest being zeros.

containerd writes the holes out as zeros; so do we, as holes: the content is the same.
"""

from __future__ import annotations

import os

from imageprepull.unpacking.headers import BLOCK, HEADER_ONLY, Header
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.numbers import INT64, parse_decimal
from imageprepull.unpacking.pax import SPARSE_MAP
from imageprepull.unpacking.stream import Stream

_LONGEST_MAP = 1 << 20
_MOST_PARTS = 1 << 20

Part = tuple[int, int]
"""Offset and length of data."""


def read_map(header: Header, stream: Stream) -> tuple[list[Part], int] | None:
    """The parts of a sparse file and how many bytes of the entry the map took; None when it is not sparse.

    Changes the header's name and size to those of the file. Raises Refused.
    """
    records = header.pax
    if not records:
        return None
    major, minor = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if major == b"1" and minor == b"0":
        in_data = True
    elif (major == b"0" and minor in (b"0", b"1")) or (not major and not minor and records.get(SPARSE_MAP)):
        in_data = False
    else:
        return None
    stored = header.size if header.type not in HEADER_ONLY else 0
    try:
        if name := records.get(b"GNU.sparse.name"):
            header.name = name
        if size := records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize"):
            header.size = parse_decimal(size)
        parts, taken = _map_in_data(stream, stored) if in_data else (_map_in_records(records), 0)
        if header.type in HEADER_ONLY:
            raise ValueError("not a regular file")  # noqa: TRY301 - one handler names the entry.
        _validate(parts, header.size)
    except ValueError as error:
        raise Refused(
            "InvalidLayer", f"the tar has an invalid sparse file: {error}", entry=header.name
        ) from None
    return parts, taken


def write_sparse(parts: list[Part], size: int, stored: int, stream: Stream, descriptor: int) -> None:
    """Write the parts where they belong. `stored`: bytes of data in the tar. Raises Refused, OSError."""
    if sum(length for _, length in parts) != stored:
        raise Refused("InvalidLayer", "a sparse file's data and map differ in length")
    os.ftruncate(descriptor, size)
    for offset, length in parts:
        os.lseek(descriptor, offset, os.SEEK_SET)
        stream.copy(length, descriptor)


def _map_in_records(records: dict[bytes, bytes]) -> list[Part]:
    count = parse_decimal(records.get(b"GNU.sparse.numblocks", b""))
    text = records.get(SPARSE_MAP, b"")
    numbers = [parse_decimal(number) for number in text.split(b",")] if text else []
    if count < 0 or len(numbers) != 2 * count:
        raise ValueError("a map of another length than it says")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _map_in_data(stream: Stream, stored: int) -> tuple[list[Part], int]:
    """Decimal numbers, one a line, in whole blocks before the data."""
    text = b""
    taken = 0
    lines = 0

    def feed(wanted: int) -> None:
        nonlocal text, taken, lines
        pieces = [text]
        while lines < wanted:
            taken += BLOCK
            if taken > _LONGEST_MAP or taken > stored:
                raise ValueError("a map that is too long")
            block = stream.read(BLOCK)
            lines += block.count(b"\n")
            pieces.append(block)
        text = b"".join(pieces)

    feed(1)
    first, _, text = text.partition(b"\n")
    count = parse_decimal(first)
    if not 0 <= count < _MOST_PARTS:
        raise ValueError("a map of impossible length")
    lines -= 1
    feed(2 * count)
    numbers = [parse_decimal(number) for number in text.split(b"\n")[: 2 * count]]
    return list(zip(numbers[::2], numbers[1::2], strict=True)), taken


def _validate(parts: list[Part], size: int) -> None:
    end = 0
    if size < 0:
        raise ValueError("negative size")
    for offset, length in parts:
        if offset < 0 or length < 0 or offset + length >= INT64 or offset + length > size or offset < end:
            raise ValueError("parts that overlap or lie outside")
        end = offset + length
