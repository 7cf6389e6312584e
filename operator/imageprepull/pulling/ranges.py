"""Which bytes of a blob the spool holds: a map of ranges and the contiguous frontier. Pure; the spool does the I/O."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class RangeMap:
    """Half-open byte ranges `[start, end)` of a blob of `size` bytes: sorted, disjoint, never touching."""

    def __init__(self, size: int, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Start from ranges held before, for example those of a process that died."""
        if size < 0:
            raise ValueError(f"a blob cannot have {size} bytes")
        self.size = size
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __repr__(self) -> str:
        """Readable, since tests compare it."""
        held = ", ".join(f"{start}-{end}" for start, end in self.ranges)
        return f"<{held or 'nothing'} of {self.size}>"

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges held, in order."""
        return list(zip(self._starts, self._ends, strict=True))

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return sum(self._ends) - sum(self._starts)

    @property
    def frontier(self) -> int:
        """Up to where the blob is held without a gap from its first byte: what a reader may consume."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def complete(self) -> bool:
        """Whether every byte is held."""
        return self.frontier == self.size

    def add(self, start: int, end: int) -> None:
        """Record that `[start, end)` is held now; bytes held already are counted once."""
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"the range {start}-{end} is not within a blob of {self.size} bytes")
        if start == end:
            return
        # All ranges that overlap or touch the new one melt into it.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def gap_after(self, offset: int) -> tuple[int, int] | None:
        """The first range that is missing at or after `offset`, or None when nothing is."""
        for start, end in self.ranges:
            if offset < start:
                return (offset, start)
            offset = max(offset, end)
        return (offset, self.size) if offset < self.size else None
