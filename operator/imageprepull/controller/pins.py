"""Pins that yielded, told to the people whose pins they were: agents may write no Events, so the operator does.

Between intake.py, which sees an agent's status change, and events.py, which tells an object at most once in a while.
"""

from __future__ import annotations

from collections.abc import Sequence

from imageprepull.controller.event_rules import Notice
from imageprepull.controller.events import Events
from imageprepull.controller.render import cut_short, uid_of
from imageprepull.controller.world import World
from imageprepull.resources.imageprepull import PinPolicy
from imageprepull.resources.nodeprepull import DesiredImage, NodePrepull

PINS_YIELDED = "PinsYielded"


def yielded(before: NodePrepull | None, now: NodePrepull) -> bool:
    """Whether a node's pins have yielded between two looks. What was so at the first look was told by another."""
    if before is None or now.status.disk is None or not now.status.disk.pins_yielded:
        return False
    return before.status.disk is None or not before.status.disk.pins_yielded


class PinNotices:
    """For the replica that leads."""

    def __init__(self, world: World, events: Events) -> None:
        self._world = world
        self._events = events

    def tell(self, now: NodePrepull) -> None:
        """An Event on each ImagePrepull that pins an image on the node."""
        pinned = [entry for entry in now.spec.images if entry.pin]
        owners = {uid_of(owner) for entry in pinned for owner in entry.owners}
        if any(map(cut_short, pinned)):
            owners |= self._planned(now.metadata.name, pinned)
        why = now.status.disk.message if now.status.disk else ""
        text = (
            f"node {now.metadata.name} is short of disk, its images are not pinned until there is room: {why}"
        )
        for known in self._world.prepulls.values():
            if known.uid in owners:
                self._events.tell(known.prepull.metadata, Notice("Warning", PINS_YIELDED, text))

    def _planned(self, node: str, pinned: Sequence[DesiredImage]) -> set[str]:
        """Who has one of these images pinned there by the plan: an entry has no room for more than so many owners."""
        keys = {(entry.reference, entry.digest) for entry in pinned}
        return {
            uid
            for uid, choice in self._world.choices.items()
            if self._world.planned[uid].prepull.spec.pin_policy is PinPolicy.WHILE_REFERENCED
            and any((one.image.record, one.digest) in keys for one in choice.nodes.get(node, ()))
        }
