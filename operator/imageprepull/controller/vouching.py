"""Whether the orders to delete that stand may still be obeyed: what the leader says with each renewal of its Lease.

Between the caches and lease.py, which asks before every renewal. A leader that lives and is blind would never take an
order back: who wants an image again would lose it. So it vouches only when it has looked since its last word: a quorum
list showed no ImagePrepull that is not in the plan, the caches follow, and no node waits for a write that takes such an
order back. Other writes, thousands of them in a roll-out, are none of its business.

A backup may have been restored meanwhile, with orders that no event tells. So all is read again first when a watch has
lost the API server since its last list, or when the API server has gone back behind what was seen before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from imageprepull.controller.standby import Standby
from imageprepull.controller.world import World
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS

logger = structlog.get_logger(__name__)
SETTLING = 0.1
"""Seconds between two looks at queues that are being worked on."""


class Vouching:
    """Looks once between two renewals while it knows of an order to delete.

    Else it vouches for nothing, and looks every `rest` seconds whether objects can be read.
    `takes_back`: whether a write that is due for a node takes back an order to delete. `poll`: seconds until an order
    that was just given is noticed.
    """

    def __init__(
        self,
        api: ApiClient,
        standby: Standby,
        *,
        takes_back: Callable[[str], bool],
        poll: float,
        rest: float,
    ) -> None:
        self.unreadable: str | None = None
        """Why ImagePrepulls, or their CRDs, could not be read at the last attempt."""
        self.doubt = ""
        """Why nobody may delete at this moment."""
        self._api = api
        self._standby = standby
        self._world = standby.world
        self._queues = standby.queues
        self._trust = standby.trust
        self._takes_back = takes_back
        self._poll = poll
        self._rest = rest
        self._next = 0.0
        self._turn = 0
        self._sure: int | None = None
        self._listed = 0
        self._renewed = asyncio.Event()

    def vouches(self) -> bool:
        """Whether all orders that stand were right at a moment since the last `renewed`."""
        return self._sure == self._turn

    def renewed(self) -> None:
        """A renewal was sent, whatever became of it: the next needs another look."""
        self._turn += 1
        self._renewed.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._renewed.wait()
            self._renewed.clear()

    async def look(self) -> None:
        """Look now if it is time to."""
        if self.vouches() or not (self._world.deleting() or time.monotonic() >= self._next):
            return
        turn = self._turn
        lost = self._lost()
        # All of them, or one that cannot follow for good would have the others list for ever.
        if lost and not any(informer.sight.problem for informer in self._standby.informers):
            self._start_over(lost)
            return
        seen = self._seen()
        try:
            found, version = await self._api.list(IMAGEPREPULLS, metadata_only=True)
            trusted = await self._trust.holds()
        except ApiError as error:
            if self.unreadable is None:
                logger.warning("ImagePrepulls cannot be read, no order is vouched for", error=str(error))
            self.unreadable = self.doubt = str(error)
            return
        self.unreadable = None
        self._listed = int(version or 0)
        if self._listed < seen:
            self._start_over(f"the API server is in an older state ({version}) than was seen before ({seen})")
            return
        self._next = time.monotonic() + self._rest
        for document in unread(found, self._world):
            self._queues.prepulls.add((document["metadata"]["namespace"], document["metadata"]["name"]))
        await self._settle(found, turn, trusted=trusted)

    async def _settle(self, found: list[dict[str, Any]], turn: int, *, trusted: bool) -> None:
        """Vouch as soon as all that was found is in the plan and no order has to be taken back, if that is in this turn."""
        if self._turn != turn:
            self.doubt = "to list all ImagePrepulls takes longer than the Lease is left without a renewal"
        while self._turn == turn:
            # What is in the plan by now stays there while the nodes are looked at.
            self.doubt = self._doubt(found, trusted=trusted) or await self._unwritten() or self._lost()
            if not self.doubt and self._world.deleting():
                self._sure = turn
            if not self.doubt or not trusted or self._lost():
                return
            await asyncio.sleep(SETTLING)

    def _lost(self) -> str:
        """What a list has to tell again before an order is vouched for. Without an order no list is wanted for that."""
        lost = ", ".join(one.kind.plural for one in self._standby.informers if one.sight.broken)
        return f"the API server was lost from sight ({lost})" if lost and self._world.deleting() else ""

    def _start_over(self, why: str) -> None:
        self.doubt = why
        logger.info("everything is read again before an order to delete may be obeyed", why=why)
        self._standby.start_over()

    def _seen(self) -> int:
        """The newest resourceVersion of our kinds. Others may have an etcd of their own, that counts by itself.

        Not the last one: a watch that ended with the restore has listed anew since, and knows nothing of it.
        """
        ours = [one.newest for one in self._standby.informers if one.kind.group == IMAGEPREPULLS.group]
        return max(self._listed, *ours)

    async def _unwritten(self) -> str:
        waiting = []
        for name in sorted(self._world.ordered()):
            if not self._queues.nodes.behind(name):
                continue
            if self._takes_back(name):
                waiting.append(name)
            await asyncio.sleep(0)  # each takes a millisecond, and there may be thousands.
        if not waiting:
            return ""
        return f"{len(waiting)} NodePrepulls are not written yet, where an order is to be taken back: {waiting[0]}"

    def _doubt(self, found: list[dict[str, Any]], *, trusted: bool) -> str:
        if not trusted:
            return "the caches do not follow the API server"
        if missing := unread(found, self._world):
            return f"{len(missing)} ImagePrepulls are not read yet: {missing[0]['metadata']['name']}"
        if not (self._queues.prepulls.idle and self._queues.plan.idle):
            return "not everything that was read is in the plan yet"
        if not self._standby.may_write():
            return "the API server was lost from sight since the plan was made"
        return ""

    def note(self) -> str | None:
        """A line for /readyz?verbose while orders to delete stand and are not vouched for."""
        if not self.doubt or not self._world.deleting():
            return None
        return f"not vouched for, nothing is deleted: {self.doubt}"


def unread(found: list[dict[str, Any]], world: World) -> list[dict[str, Any]]:
    """Which of these ImagePrepulls are not known, or not as they are by now."""
    known = {one.uid: one.generation for one in world.prepulls.values()}
    return [
        document
        for document in found
        if known.get(document["metadata"]["uid"], -1) != document["metadata"]["generation"]
    ]
