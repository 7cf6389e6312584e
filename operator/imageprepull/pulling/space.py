"""Whether there is room: what a pull will need against what a file system may give. Pure; rooms.py looks and acts.

What must stay free is said by the objects (`minFreeDisk`) and by the thresholds at which the kubelet acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprepull.pulling.errors import DISK_ERROR, PullError
from imageprepull.pulling.need import Need
from imageprepull.resources.free_space import Amount
from imageprepull.resources.reasons import DISK_FULL, INSUFFICIENT_DISK

OUT_OF_SPACE = (INSUFFICIENT_DISK, DISK_FULL)
OF_THE_DISK = (*OUT_OF_SPACE, DISK_ERROR)
IMAGEFS_AVAILABLE = Amount(percent=15)
INODES_FREE = Amount(percent=5)
_THOUSAND = 1000


@dataclass(frozen=True, slots=True)
class Room:
    """A file system at one moment: bytes, and inodes (none where it makes them as they are needed)."""

    capacity: int
    free: int
    inodes: int = 0
    inodes_free: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where the kubelet acts; the defaults are the kubelet's own (evictionHard, imageGCHighThresholdPercent).

    `eviction`: the free space below which it evicts pods, of a file system that is imagefs, and perhaps nodefs too.
    """

    eviction: Amount = IMAGEFS_AVAILABLE
    eviction_inodes: Amount = INODES_FREE
    image_gc_high: int = 85

    @property
    def min_free(self) -> Amount:
        """What stays free when nobody says otherwise: 5 points before the kubelet begins to collect images."""
        return Amount(percent=min(100, 105 - self.image_gc_high))


NO_THRESHOLDS = Thresholds(eviction=Amount(), eviction_inodes=Amount(), image_gc_high=105)
"""Where no kubelet is: what fits may be pulled."""


def floor_of(room: Room, thresholds: Thresholds, min_free: Amount | None) -> int:
    """Bytes that stay free: what was asked for, and never less than what the kubelet evicts pods for."""
    asked = thresholds.min_free if min_free is None else min_free
    return max(asked.of(room.capacity), thresholds.eviction.of(room.capacity))


@dataclass(frozen=True, slots=True)
class Shortage:
    """A file system without the room: what would be needed there, and what there is, in bytes."""

    folder: str
    need: int
    free: int
    promised: int
    floor: int
    capacity: int

    def __str__(self) -> str:
        """In one line, with all figures."""
        promised = f", of which other pulls will take {human(self.promised)}" if self.promised else ""
        return (
            f"{human(self.need)} needed in {self.folder}, {human(self.free)} free{promised}, and "
            f"{human(self.floor)} of {human(self.capacity)} must stay free"
        )


def shortage(  # noqa: PLR0917 - the six figures of the rule.
    folder: str, room: Room, floor: int, need: int, promised: int = 0, spare: int = 0
) -> Shortage | None:
    """Whether `need` bytes do not fit. `promised` will be written by others; `spare` is wanted on top.

    What needs nothing always fits: giving a name or a pin to what is there makes nothing worse.
    """
    if need <= 0 or room.free - promised - need - spare >= floor:
        return None
    return Shortage(folder, need, room.free, promised, floor, room.capacity)


@dataclass(frozen=True, slots=True)
class Open:
    """A pull at work on one file system, oldest first: what it will still write there, at first and now, its floor."""

    left: int
    need: int
    floor: int


def to_stop(
    room: Room, before: Room | None, pulls: Sequence[Open], thresholds: Thresholds
) -> dict[int, Shortage]:
    """Which of the pulls on a file system must stop, by index, and the figures why (without a folder).

    All, when the next look might find the kubelet's threshold passed; those whose floor is reached; and, newest
    first, those for which there will be no room as far as can be told by now.
    """
    sinking = max(0, before.free - room.free) if before is not None else 0
    reached = room.free - sinking < thresholds.eviction.of(room.capacity)
    stopped: dict[int, Shortage] = {}
    promised = 0
    for index, pull in enumerate(pulls):
        # Estimates waver; the floor itself does not.
        late = room.free - promised - pull.left < pull.floor - pull.need // 10
        if reached or room.free < pull.floor or scarce_inodes(room, thresholds) or late:
            stopped[index] = Shortage("", pull.left, room.free, promised, pull.floor, room.capacity)
        else:
            promised += pull.left
    return stopped


def scarce_inodes(room: Room, thresholds: Thresholds, points: float = 0) -> bool:
    """Whether the kubelet's threshold for inodes is reached, or will be `points` percent further on."""
    threshold = thresholds.eviction_inodes.of(room.inodes)
    return threshold > 0 and room.inodes_free <= threshold + room.inodes * points / 100


class NoRoom(PullError):
    """A pull that did not start, or gave up, for want of space. `need` is what it would take from the start."""

    def __init__(self, reason: str, message: str, need: Need, min_free: Amount | None) -> None:
        super().__init__(reason, message)
        self.need = need
        self.min_free = min_free


def human(count: int) -> str:
    """Bytes for people."""
    size, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < _THOUSAND or unit == "TB":
            break
        size /= _THOUSAND
    return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
