"""Whether a node is about to reach its eviction threshold. Pure; disk.py looks and acts.

Then nothing is started, our pins yield and unfinished pulls give back what they hold: with these the kubelet would find
nothing to remove, and evict pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imageprepull.pulling.space import Room, Thresholds, human, scarce_inodes


@dataclass(frozen=True, slots=True)
class Short:
    """Whether a node is about to reach its eviction threshold. With hysteresis: what ends it lies further up.

    `message` says where and with which figures.
    """

    pressure: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Points above the kubelet's eviction threshold: where pressure begins, and where it is over."""

    enter: float = 1
    leave: float = 5
    spare: float = 1
    """Points of a file system that must be free beyond a need, before a pull that had no room is tried again."""


def judge_pressure(was: bool, rooms: Mapping[str, Room], thresholds: Thresholds, margins: Margins) -> Short:
    """The pressure of a node by the file systems of the runtime, by folder.

    It begins a little before the kubelet's threshold: the kubelet evicts pods in the same pass in which it finds
    that no image can be removed, so pins must be gone by then.
    """
    points = margins.leave if was else margins.enter
    for folder, room in rooms.items():
        eviction = thresholds.eviction.of(room.capacity)
        # An explicitly disabled threshold is no pressure.
        if eviction and room.free <= eviction + room.capacity * points / 100:
            return Short(
                True,
                f"{human(room.free)} of {human(room.capacity)} free in {folder}; "
                f"the kubelet evicts pods below {human(eviction)}",
            )
        if scarce_inodes(room, thresholds, points):
            return Short(True, f"{room.inodes_free} of {room.inodes} inodes free in {folder}")
    return Short()
