"""How hard a pull drives the node: politely beside pods, until somebody waits for the very image.

A kubelet that pulls an image which we are bringing waits for our layers as for its own. It is seen by its lease: one
that is not ours and holds the image's manifest or config, which every client of the runtime fetches first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from imageprepull.pulling.labels import LEASE, MEMORY
from imageprepull.pulling.leases import CONTENT
from imageprepull.pulling.settings import PullSettings
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import LeaseGone, NotFound, RuntimeFault

log = structlog.get_logger(__name__)
_SOONEST = 0.1
_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Manners:
    """Of the next worker, and but for `nice` of those at work. `nice` is added to its priority; `dirty_bytes` as in `ExtractJob`.

    `polite` ones have fewer turns while the disks are busy.
    """

    nice: int = 0
    dirty_bytes: int = 0
    polite: bool = False


@dataclass(slots=True)
class Urgency:
    """Of one image's pull. Once `urgent`, it stays so; `wanted` is set when somebody else waits for it, who makes it so.

    Workers that are at it already are told by that. Their priority stays: to raise one takes CAP_SYS_NICE, which agents
    do without.
    """

    settings: PullSettings
    urgent: bool
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def manners(self) -> Manners:
        """Those of a worker that starts now."""
        if self.urgent:
            return Manners()
        return Manners(self.settings.polite_nice, self.settings.polite_dirty_bytes, polite=True)

    @asynccontextmanager
    async def watched(
        self, containerd: Containerd, documents: Collection[str], told: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """Become urgent when somebody else holds one of the documents while the block runs; `told` is called then."""
        watching = asyncio.create_task(self._watch(containerd, documents, told), name="urgency")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        if not watching.cancelled():
            watching.result()

    async def _watch(
        self, containerd: Containerd, documents: Collection[str], told: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        # Nobody in this process could set an event: it is another that comes.
        while not await self._wanted(containerd, documents):  # noqa: ASYNC110 - as said.
            await asyncio.sleep(until_next_look(loop.time() - began, self.settings.wanted_poll))
        log.info("somebody waits for an image that is being pulled", documents=sorted(documents))
        self.urgent = True
        self.wanted.set()
        told()

    async def _wanted(self, containerd: Containerd, documents: Collection[str]) -> bool:
        try:
            return await wanted_elsewhere(containerd, documents)
        except RuntimeFault as fault:
            log.debug("cannot ask who else wants an image", error=str(fault))
            return False


def until_next_look(age: float, longest: float) -> float:
    """Seconds until somebody who waits is looked for again, in a pull of that age.

    What both do twice until then is so no more than a tenth of what was done, and `longest` seconds.
    """
    return min(max(_SOONEST, age * _SHARE), longest)


async def wanted_elsewhere(containerd: Containerd, documents: Collection[str]) -> bool:
    """Whether a lease of somebody else holds one of these blobs.

    Raises:
        RuntimeFault: the runtime does not answer.
    """
    for lease in await containerd.leases.list():
        if LEASE in lease.labels or MEMORY in lease.labels:
            continue
        try:
            resources = await containerd.leases.resources(lease.id)
        except (NotFound, LeaseGone):  # over meanwhile.
            continue
        if any(found.type == CONTENT and found.id in documents for found in resources):
            return True
    return False
