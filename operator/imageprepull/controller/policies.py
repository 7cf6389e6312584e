"""What the newest seen version of each ImagePrepull says of its images' end. Asked when they are withdrawn.

An object may be patched to Retain and deleted before any NodePrepull was written for the patch: the entries still say
Delete then. Its DELETED event carries the newest version, and what was read of it before stands in for an event that
was missed. What nobody saw (patched and deleted while no operator led) is not known: then the entry counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from imageprepull.resources.imageprepull import DeletionPolicy


class DeletionPolicies:
    """By uid, of objects that exist and of those that are gone, until `forget`."""

    def __init__(self) -> None:
        self.retaining: set[str] = set()
        """The uids whose newest seen version does not ask for Delete."""
        self._versions: dict[str, int] = {}

    def note(self, document: Mapping[str, Any]) -> None:
        """An ImagePrepull as an event or an answer has it. Answers may come after events that are newer."""
        metadata = document["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        if version < self._versions.get(uid, 0):
            return
        self._versions[uid] = version
        # Whatever this version cannot read is no order to delete.
        if (document.get("spec") or {}).get("deletionPolicy") == DeletionPolicy.DELETE:
            self.retaining.discard(uid)
        else:
            self.retaining.add(uid)

    def forget(self, referenced: Collection[str]) -> None:
        """Drop all but these uids: nothing is left to withdraw for the others."""
        for uid in self._versions.keys() - set(referenced):
            del self._versions[uid]
            self.retaining.discard(uid)
