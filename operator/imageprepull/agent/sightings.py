"""Since when the agent has had its orders before its eyes. The decision is pure; `Sightings` keeps the last one.

Between the NodePrepull's watch and orders.py: an order counts from when it was seen, and one that changed, or came
with another object, is another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imageprepull.agent.clock import Clock
from imageprepull.agent.orders import Order
from imageprepull.agent.plan import Key, key_of
from imageprepull.resources.nodeprepull import DesiredImage


def sighted(
    before: Mapping[Key, Order], uid: str, entries: Sequence[DesiredImage], now: float
) -> dict[Key, Order]:
    """The orders among the entries of the object `uid`, each with when it was first seen as it is."""
    found = {}
    for entry in entries:
        if not entry.to_be_deleted:
            continue
        known = before.get(key_of(entry))
        same = known is not None and (known.uid, known.entry) == (uid, entry)
        found[key_of(entry)] = known if known is not None and same else Order(uid, entry, now)
    return found


@dataclass(slots=True)
class Sightings:
    """The orders of the object that the agent follows, on the agent's clock."""

    clock: Clock
    _orders: dict[Key, Order] = field(default_factory=dict)

    def take(self, uid: str, entries: Sequence[DesiredImage]) -> None:
        """The newest entries; none when the object is gone."""
        self._orders = sighted(self._orders, uid, entries, self.clock.now())

    def of(self, image: DesiredImage) -> Order | None:
        """The order to remove this image, if there is one."""
        return self._orders.get(key_of(image))
