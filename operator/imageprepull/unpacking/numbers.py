"""The number fields of tar headers and PAX records, as Go's archive/tar reads them: no sign, no blank, no base else."""

from __future__ import annotations

import re

INT64 = 1 << 63
_DECIMAL = re.compile(rb"[+-]?[0-9]+")
_TIME = re.compile(rb"([+-]?[0-9]+)(?:\.([0-9]*))?")
_YEAR_1 = 62_135_596_800
"""Seconds from year 1 to 1970 (Go's time package, unixToInternal)."""
NANO = 1_000_000_000


def parse_octal(field: bytes) -> int:
    """Octal digits between blanks and NULs; nothing is 0. Raises ValueError."""
    digits = field.strip(b" \0")
    if not digits.isdigit():
        digits = digits.partition(b"\0")[0]
        if not digits:
            return 0
        if not digits.isdigit():
            raise ValueError(f"not an octal number: {field!r}")
    value = int(digits, 8)
    if value >= 1 << 64:
        raise ValueError(f"too large: {field!r}")
    return value if value < INT64 else value - (1 << 64)


def parse_numeric(field: bytes) -> int:
    """Octal, or GNU's base-256 when the first bit is set. Raises ValueError."""
    if not field[0] & 0x80:
        return parse_octal(field)
    width = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << width) - 1)
    if field[0] & 0x40:
        value -= 1 << width
    if not -INT64 <= value < INT64:
        raise ValueError(f"too large: {field!r}")
    return value


def parse_decimal(text: bytes) -> int:
    """Go's strconv.ParseInt(text, 10, 64). Raises ValueError."""
    if not _DECIMAL.fullmatch(text) or len(text) > 4300:
        raise ValueError(f"not a number: {text[:40]!r}")
    value = int(text)
    if not -INT64 <= value < INT64:
        raise ValueError(f"too large: {text[:40]!r}")
    return value


def parse_time(text: bytes) -> int:
    """Nanoseconds since 1970 of a PAX time; digits after the ninth are cut. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    whole, fraction = found.groups()
    nanoseconds = int((fraction or b"")[:9].ljust(9, b"0"))
    return parse_decimal(whole) * NANO + (-nanoseconds if whole.startswith(b"-") else nanoseconds)


def bound_time(nanoseconds: int) -> int:
    """What containerd sets: times before 1970 or after 2262 become 1970."""
    return nanoseconds if 0 <= nanoseconds < INT64 else 0


def is_before(one: int, other: int) -> bool:
    """Go's `Time.Before` of two times in nanoseconds since 1970: its seconds count from year 1, and overflow."""
    return _instant(one) < _instant(other)


def _instant(nanoseconds: int) -> tuple[int, int]:
    seconds, rest = divmod(nanoseconds, NANO)
    return (seconds + _YEAR_1 + INT64) % (2 * INT64) - INT64, rest
