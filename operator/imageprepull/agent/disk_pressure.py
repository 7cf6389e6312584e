"""Whether a node is about to reach its eviction threshold. Pure; disk.py looks and acts.

Then nothing is started, our pins yield and unfinished pulls give back what they hold: with these the kubelet would find
nothing to remove, and evict pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from imageprepull.pulling.space import Room, Thresholds, human, scarce_inodes


@dataclass(frozen=True, slots=True)
class Short:
    """Whether a node is about to reach its eviction threshold. With hysteresis: what ends it lies further up.

    `scarce` are the file systems by folder, each with what is scarce there (`bytes`, `inodes`). `message` says where it is
    first, and with which figures.
    """

    scarce: frozenset[tuple[str, str]] = frozenset()
    message: str = ""

    @property
    def pressure(self) -> bool:
        """Whether anything is scarce anywhere."""
        return bool(self.scarce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Points above the kubelet's eviction threshold: where pressure begins, and where it is over."""

    enter: float = 1
    leave: float = 5
    spare: float = 1
    """Points of a file system that must be free beyond a need, before a pull that had no room is tried again."""


def judge_pressure(was: Short, rooms: Mapping[str, Room], thresholds: Thresholds, margins: Margins) -> Short:
    """The pressure of a node by the file systems of the runtime, by folder.

    It begins a little before the kubelet's threshold: the kubelet evicts pods in the same pass in which it finds
    that no image can be removed, so pins must be gone by then. Each file system has its own hysteresis, and so have its
    inodes: one that is always close to the threshold must not hold the pressure that another one began.
    """
    found = {
        (folder, what): message
        for folder, room in rooms.items()
        for what, message in _scarce(folder, room, was.scarce, thresholds, margins)
    }
    return Short(frozenset(found), next(iter(found.values()), ""))


def _scarce(
    folder: str,
    room: Room,
    was: AbstractSet[tuple[str, str]],
    thresholds: Thresholds,
    margins: Margins,
) -> Iterator[tuple[str, str]]:
    """What is scarce on one file system, and the figures in words."""

    def points(what: str) -> float:
        return margins.leave if (folder, what) in was else margins.enter

    eviction = thresholds.eviction.of(room.capacity)
    # An explicitly disabled threshold is no pressure.
    if eviction and room.free <= eviction + room.capacity * points("bytes") / 100:
        free = f"{human(room.free)} of {human(room.capacity)} free in {folder}"
        yield "bytes", f"{free}; the kubelet evicts pods below {human(eviction)}"
    if scarce_inodes(room, thresholds, points("inodes")):
        yield "inodes", f"{room.inodes_free} of {room.inodes} inodes free in {folder}"
