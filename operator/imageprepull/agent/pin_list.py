"""The pins of ours on the node as the runtime listed them last, and who may have been pinned since.

Between the reconciler, which says when they are asked for, and pins.py and strays.py, which tell whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import structlog

from imageprepull.agent.clock import Clock
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.pins import pinned_entries
from imageprepull.agent.plan import Key
from imageprepull.agent.strays import stray_pins
from imageprepull.pulling.pins import Pin
from imageprepull.resources.nodeprepull import StrayPin

logger = structlog.get_logger(__name__)


class PinList:
    """Kept over the steps. `changed` hears that a list, or what is reported of it, is another one than before."""

    def __init__(self, node: Node, clock: Clock, *, stray_turn: float, changed: Callable[[], None]) -> None:
        """`stray_turn`: seconds before other pins without an entry are reported than those that are."""
        self.doubtful = True
        """The pins may be others than were listed."""
        self.strays: list[StrayPin] = []
        """Pins beside the spec, as of the last time that it could be told."""
        self._node = node
        self._clock = clock
        self._stray_turn = stray_turn
        self._changed = changed
        self._listed: list[Pin] | None = None
        self._may_be_set: set[Key] = set()
        """What may have been pinned since the pins were listed."""
        self._turn_from = clock.now() + stray_turn

    def may_be_set(self, key: Key) -> None:
        """A pin of this image was asked for."""
        self._may_be_set.add(key)
        self.doubtful = True

    async def ask(self) -> None:
        """Ask for the pins when they may be others than before.

        Raises:
            NodeError: the runtime as a whole does not answer; they stay doubtful.
        """
        if not self.doubtful:
            return
        # Before the answer: what is doubted meanwhile must be asked once more.
        self.doubtful = False
        may_be_set, self._may_be_set = self._may_be_set, set()
        try:
            listed = await self._node.pins()
        except NodeError as error:
            self.doubtful = True
            self._may_be_set |= may_be_set
            if error.unavailable:
                raise
            logger.warning("pins not listed", reason=error.reason, error=str(error))
            return
        if listed != self._listed:
            self._listed = listed
            self._changed()

    def of(self, views: Mapping[Key, ImageView]) -> set[Key]:
        """Which images carry a pin, as far as the list is not doubtful."""
        # What is doubtful was taken away just now, mostly: it would be taken again and again.
        return set() if self.doubtful else pinned_entries(self._listed or (), views)

    def left(self, views: Mapping[Key, ImageView]) -> int:
        """How many images may carry a pin, as the runtime lists them and not as each is judged."""
        if self._listed is None:
            return len(views)
        # A pull that began with the wish for a pin may set it still.
        pulling = {key for key, view in views.items() if view.running and not view.verifying}
        return len(pinned_entries(self._listed, views) | pulling | (self._may_be_set & views.keys()))

    def note_strays(self, named: AbstractSet[Key]) -> None:
        """Find the pins beside the images `named`, if that can be told now."""
        if self.doubtful or self._listed is None:
            return
        turn = self._clock.now() >= self._turn_from
        if turn or not self.strays:
            self._turn_from = self._clock.now() + self._stray_turn
        found = stray_pins(self._listed, named, self.strays, turn=turn)
        if found != self.strays:
            self.strays = found
            self._changed()
