"""The times of listed directories, kept until all is made: what is made in a directory changes its own.

Packed, and bounded: a layer may list millions of directories with long names in a blob of a megabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator


class DirectoryTimes:
    """In the order of `add`. `bytes_held` is what all of it takes."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q")
        self._stamps = array("q")
        self._moved = bytearray()

    @property
    def bytes_held(self) -> int:
        """Memory, but for what the containers have in reserve."""
        return len(self._names) + 25 * len(self._ends)

    def add(self, name: bytes, stamps: tuple[int, int], *, moved: bool) -> None:
        """`stamps`: access and modification time in ns. `moved`: the name leads through a link, perhaps elsewhere."""
        self._names += name
        self._ends.append(len(self._names))
        self._stamps.extend(stamps)
        self._moved.append(moved)

    def __iter__(self) -> Iterator[tuple[bytes, tuple[int, int], bool]]:
        start = 0
        for number, end in enumerate(self._ends):
            stamps = self._stamps[2 * number], self._stamps[2 * number + 1]
            yield bytes(self._names[start:end]), stamps, bool(self._moved[number])
            start = end
