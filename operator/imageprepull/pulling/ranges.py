"""Which bytes of a blob the spool holds: a map of ranges and the contiguous frontier. Pure; the spool does the I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Span = tuple[int, int]
"""Half-open: the first byte, and the one after the last."""


class RangeMap:
    """Half-open byte ranges `[start, end)` of a blob of `size` bytes: sorted, disjoint, never touching.

    A change replaces `ranges` as a whole: a thread that reads it beside the one that writes sees the map before or
    after, never half of each.
    """

    def __init__(self, size: int, ranges: Iterable[Span] = ()) -> None:
        """Start from ranges held before, for example those of a process that died."""
        if size < 0:
            raise ValueError(f"a blob cannot have {size} bytes")
        self.size = size
        self._ranges: tuple[Span, ...] = ()
        for start, end in ranges:
            self.add(start, end)

    def __repr__(self) -> str:
        """Readable, since tests compare it."""
        held = ", ".join(f"{start}-{end}" for start, end in self._ranges)
        return f"<{held or 'nothing'} of {self.size}>"

    @property
    def ranges(self) -> list[Span]:
        """The ranges held, in order."""
        return list(self._ranges)

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return sum(end - start for start, end in self._ranges)

    @property
    def frontier(self) -> int:
        """Up to where the blob is held without a gap from its first byte: what a reader may consume."""
        first = self._ranges[:1]
        return first[0][1] if first and first[0][0] == 0 else 0

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
        # All ranges that overlap or touch the new one melt into it; there are never more than a few dozen.
        before = tuple(span for span in self._ranges if span[1] < start)
        after = tuple(span for span in self._ranges if span[0] > end)
        melted = self._ranges[len(before) : len(self._ranges) - len(after)]
        if melted:
            start, end = min(start, melted[0][0]), max(end, melted[-1][1])
        self._ranges = (*before, (start, end), *after)

    def gap_after(self, offset: int) -> Span | None:
        """The first range that is missing at or after `offset`, or None when nothing is."""
        return next(self.missing(offset, self.size), None)

    def missing(self, start: int, end: int) -> Iterator[Span]:
        """The parts of `[start, end)` that are not held, in order, as long as each can be."""
        for held_start, held_end in self._ranges:
            if start >= end:
                return
            if start < held_start:
                yield (start, min(held_start, end))
            start = max(start, held_end)
        if start < end:
            yield (start, end)
