"""What the newest seen version of each ImagePrepull says of its images' end. Asked when they are withdrawn.

An object may be patched to Retain and deleted before any NodePrepull was written for the patch: the entries still say
Delete then. Its DELETED event carries the newest version, and what was read of it before stands in for an event that
was missed. What nobody saw (patched and deleted while no operator led) is not known: then the entry counts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from imageprepull.resources.imageprepull import DeletionPolicy


@dataclass(frozen=True, slots=True)
class _Heard:
    version: int
    at: float


class DeletionPolicies:
    """By uid, of objects that exist and of those that are gone, until `forget`."""

    def __init__(self) -> None:
        self.retaining: set[str] = set()
        """The uids whose newest seen version does not ask for Delete."""
        self._heard: dict[str, _Heard] = {}

    def note(self, document: Mapping[str, Any], *, asked: float | None = None, last: bool = False) -> None:
        """An ImagePrepull as an event has it, or an answer to what was `asked` at that monotonic time.

        Events and answers overtake each other, so that a lower version is an older word; but not after a restored
        backup, which puts the counter back. A quorum read that was asked for after a word was heard is newer than it,
        whatever the numbers say; and what a DELETED event has (`last`) is the object's last word.
        """
        metadata = document["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        before = self._heard.get(uid)
        older = before is not None and version < before.version
        if before is not None and older and not last and (asked is None or asked <= before.at):
            return
        self._heard[uid] = _Heard(version, time.monotonic())
        # Whatever this version cannot read is no order to delete.
        if (document.get("spec") or {}).get("deletionPolicy") == DeletionPolicy.DELETE:
            self.retaining.discard(uid)
        else:
            self.retaining.add(uid)

    def forget(self, referenced: Collection[str]) -> None:
        """Drop all but these uids: nothing is left to withdraw for the others."""
        for uid in self._heard.keys() - set(referenced):
            del self._heard[uid]
            self.retaining.discard(uid)
