"""Directories that no entry (yet) lists, in order of creation: they inherit from lower layers when those are known.

`tree` makes them; `inherit` gives them their attributes at commit, when the parent's chain stands.
"""

from __future__ import annotations

from imageprepull.unpacking.jobs import ImplicitDirectory
from imageprepull.unpacking.paths import parent_of


class _Record:
    __slots__ = ("below", "keeps_group", "keeps_user", "listed", "timed", "used")

    def __init__(self, *, below: bool) -> None:
        self.listed = self.keeps_user = self.keeps_group = False
        self.below = below
        self.used = self.timed = False


class ImplicitDirectories:
    """What was made on the way to an entry, by path."""

    def __init__(self) -> None:
        self._records: dict[bytes, _Record] = {}

    def __contains__(self, path: bytes) -> bool:
        return path in self._records

    def __bool__(self) -> bool:
        return bool(self._records)

    def made(self, path: bytes) -> None:
        """A directory was made that no entry listed so far."""
        parent = self._records.get(parent_of(path))
        self._records[path] = _Record(below=parent is not None and not parent.listed)

    def listed(self, path: bytes, owner: tuple[int, int] = (0, 0)) -> None:
        """An entry gave the directory its own mode and times, and its owner as far as that is not -1."""
        if (record := self._records.get(path)) is not None:
            user, group = owner
            record.keeps_user = user == -1 and (record.keeps_user or not record.listed)
            record.keeps_group = group == -1 and (record.keeps_group or not record.listed)
            record.listed = True

    def timed(self, path: bytes) -> None:
        """The times of another entry were set on the directory, last of all."""
        if (record := self._records.get(path)) is not None:
            record.timed = True

    def is_unlisted(self, path: bytes) -> bool:
        """Whether no entry stands for the directory."""
        record = self._records.get(path)
        return record is not None and not record.listed

    def used(self, parent: bytes) -> None:
        """Something was made or removed in a directory: its mtime is now."""
        if (record := self._records.get(parent)) is not None:
            record.used = True

    def removed(self, path: bytes) -> None:
        """A directory is gone; one that comes there again is another."""
        self._records.pop(path, None)

    def freeze(self) -> tuple[ImplicitDirectory, ...]:
        """In order of creation."""
        return tuple(
            ImplicitDirectory(
                path,
                record.listed,
                record.below,
                record.used,
                record.keeps_user,
                record.keeps_group,
                record.timed,
            )
            for path, record in self._records.items()
        )
