"""`minFreeDisk` and the kubelet's thresholds: an amount of a file system, in bytes, in percent of it, or both.

The form is that of the CRDs. Two objects that ask for different kinds cannot be compared before a node's disk is
known: the entry for the node then has both, separated by a comma, and the larger one counts there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_BYTES = re.compile(r"^([0-9]+)(k|M|G|T|Ki|Mi|Gi|Ti)?$")
_PERCENT = re.compile(r"^([0-9]+(?:\.[0-9]+)?)%$")
_WHOLE = 100
_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes (or inodes) and percent of a whole; of both the larger one counts."""

    count: int = 0
    percent: float = 0

    def of(self, whole: int) -> int:
        """How much that is of a whole, rounded up."""
        return max(self.count, math.ceil(whole * self.percent / 100))

    def __str__(self) -> str:
        """As in an entry of a NodePrepull; empty for nothing."""
        parts = [str(self.count)] if self.count else []
        parts += [f"{self.percent:g}%"] if self.percent else []
        return ",".join(parts)


def parse_amount(text: int | str) -> Amount:
    """`20Gi`, `15%`, a number of bytes, or two of these separated by a comma.

    Raises:
        ValueError: it is none of them.
    """
    found = Amount()
    for part in str(text).split(","):
        if percent := _PERCENT.match(part):
            if float(percent[1]) > _WHOLE:
                raise ValueError(f"{part} is more than everything")
            found = Amount(found.count, max(found.percent, float(percent[1])))
        elif count := _BYTES.match(part):
            found = Amount(max(found.count, int(count[1]) * _UNITS[count[2] or ""]), found.percent)
        else:
            raise ValueError(f"{part!r} is neither a quantity of bytes such as 20Gi nor a percentage")
    return found


def strictest(amounts: Iterable[int | str | None]) -> str | None:
    """What satisfies all of them; None when nobody asks for anything, and the text itself when only one does.

    Raises:
        ValueError: one cannot be read.
    """
    asked = sorted({str(one) for one in amounts if one is not None})
    if not asked:
        return None
    if len(asked) == 1:
        return asked[0]
    # What asks for nothing at all ("0") is a wish too, and the weakest.
    return str(parse_amount(",".join(asked))) or asked[0]
