"""A dictionary that forgets: what is known of repositories and blobs must not grow with the life of an agent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(OrderedDict[K, V]):
    """At most `limit` entries; the one that was neither set nor `touch`ed for longest goes first."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)

    def touch(self, key: K) -> V | None:
        """The value, which counts as used now; None when there is none."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]
