"""Bounded write-back: a polite worker waits for the disk before it has filled the page cache for everybody.

Until somebody waits for it. Without it the kernel takes gigabytes from us before it makes all who write wait, and a neighbour's fsync waits for
them; the priority of a process does not reach its write-back.
"""

from __future__ import annotations

from collections.abc import Callable

from imageprepull.unpacking import kernel


class Pace:
    """`wrote` after every piece that went into a file; `most`: bytes that may wait for the disk, unless `hurried`."""

    def __init__(
        self,
        root: int,
        most: int,
        hurried: Callable[[], bool],
        sync: Callable[[int], None] = kernel.syncfs,
    ) -> None:
        self._root = root
        self._most = most
        self._hurried = hurried
        self._sync = sync
        self._dirty = 0

    def wrote(self, count: int) -> None:
        """Wait for the disk when much was written since the last time. Raises OSError."""
        self._dirty += count
        if self._dirty >= self._most:
            if not self._hurried():
                self._sync(self._root)
            self._dirty = 0
