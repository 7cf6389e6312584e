"""A limit on how many downloads (or applies) run at once: resizable while in use, the most urgent waiter first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Limiter:
    """`async with limiter.slot(priority)`: a smaller priority goes first, equal ones in order of arrival.

    asyncio.Semaphore has neither priorities nor a limit that can change; both are needed because the layers that
    block the chain must come first, and because the strictest limit of all objects on a node changes with them.
    """

    def __init__(self, limit: int) -> None:
        """Allow `limit` holders at once, at least one."""
        self._limit = max(1, limit)
        self._held = 0
        self._arrivals = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._watchers: list[Callable[[], None]] = []

    @property
    def limit(self) -> int:
        """How many may hold a slot at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        # Lowering takes nothing away from those who hold a slot: fewer are let in until enough have left.
        self._limit = max(1, limit)
        self._admit()
        for watcher in self._watchers:
            watcher()

    @property
    def held(self) -> int:
        """How many hold a slot now."""
        return self._held

    @asynccontextmanager
    async def slot(self, priority: int = 0) -> AsyncIterator[None]:
        """Hold one slot for the time of the block."""
        await self._acquire(priority)
        try:
            yield
        finally:
            self._release()

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever the limit was set, for as long as the limiter lives."""
        self._watchers.append(changed)

    def take(self) -> bool:
        """A slot without waiting, for whoever decides itself who comes next; whether there was one."""
        if self._held >= self._limit:
            return False
        self._held += 1
        return True

    def give(self) -> None:
        """Return a slot got by `take`."""
        self._release()

    async def _acquire(self, priority: int) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (priority, next(self._arrivals), admitted))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            # Admission and cancellation may fall into the same turn of the loop: then the slot is ours to give back.
            if admitted.done() and not admitted.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self._held -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiters and self._held < self._limit:
            _, _, admitted = heapq.heappop(self._waiters)
            if not admitted.done():
                self._held += 1
                admitted.set_result(None)
