"""Amounts as people write them on a command line: 125M, 20ms."""

from __future__ import annotations

import re

SIZES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3}


def size(text: str) -> int:
    """Bytes from "125M" (10⁶) or "8Mi" (2²⁰); a rate is written the same way.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*?)B?(?:/s)?", text)
    if match is None or match[2] not in SIZES:
        raise ValueError(f"{text!r} is not a number of bytes such as 125M")
    return round(float(match[1]) * SIZES[match[2]])


def seconds(text: str) -> float:
    """Seconds from "20ms" or "0.02".

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text)
    if match is None or match[2] not in TIMES:
        raise ValueError(f"{text!r} is not a time such as 20ms")
    return float(match[1]) * TIMES[match[2]]
