"""Queues of dirty keys: between events, which only mark, and workers, which look at the present state.

As in client-go: a key is in a queue once, is never worked on by two workers, and comes back when it was marked
while it was worked on. Marking costs nothing, so events are never lost and never pile up.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Hashable
from math import inf
from typing import Generic, TypeVar

import structlog

from imageprepull.kube.errors import ApiError

K = TypeVar("K", bound=Hashable)
logger = structlog.get_logger(__name__)


class DirtyKeys(Generic[K]):
    """A queue of keys. `debounce` seconds after its first mark a key becomes due, so that bursts are one."""

    def __init__(self, *, debounce: float = 0) -> None:
        self._debounce = debounce
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._working: set[K] = set()
        self._again: dict[K, float] = {}
        self._count = 0
        self.failures: dict[K, int] = {}
        """Attempts that failed in a row, by key; shared by all workers."""
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def idle(self) -> bool:
        """Whether no key is marked or worked on."""
        return not self._due and not self._working

    def behind(self, key: K) -> bool:
        """Whether a key is worked on, is due, or has failed. A mark for later is none of these."""
        return (
            key in self._working
            or key in self.failures
            or self._due.get(key, float("inf")) <= time.monotonic() + self._debounce
        )

    def add(self, key: K, delay: float = 0) -> None:
        """Mark a key; a mark that is due earlier wins."""
        due = time.monotonic() + max(delay, self._debounce)
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._count += 1
            heapq.heappush(self._heap, (due, self._count, key))
            self._changed.set()

    async def take(self) -> K:
        """The next due key; it is the caller's until `done`."""
        while True:
            self._changed.clear()
            wait = self._next_wait()
            if wait is not None and wait <= 0:
                due, _, key = heapq.heappop(self._heap)
                if self._due.get(key) == due:
                    del self._due[key]
                    self._working.add(key)
                    return key
                continue
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the mark.
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _next_wait(self) -> float | None:
        return self._heap[0][0] - time.monotonic() if self._heap else None

    def done(self, key: K) -> None:
        """The caller is through with the key; marks that came meanwhile make it dirty again."""
        self._working.discard(key)
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again - time.monotonic())


async def work(
    queue: DirtyKeys[K],
    handle: Callable[[K], Awaitable[None]],
    *,
    backoff: float = 1,
    most: float = 60,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Work on keys until cancelled. A refused or unanswered request marks its key again, later each time.

    Anything but an `ApiError` is a bug and ends the worker, and with it the process.
    """
    failures = queue.failures
    while True:
        key = await queue.take()
        try:
            await handle(key)
            failures.pop(key, None)
        except ApiError as error:
            count = failures[key] = failures.get(key, 0) + 1
            delay = max(min(most, backoff * 2.0 ** min(count - 1, 10)), error.retry_after or 0)
            log = logger.debug if error.conflict else logger.warning
            log("will be tried again", key=key, error=str(error), seconds=delay)
            queue.add(key, 0 if error.conflict and count == 1 else delay)
        finally:
            queue.done(key)
            beat()
        # A key that needed no request has not let anybody else in, and there may be thousands of them.
        await asyncio.sleep(0)


class Rate:
    """At most `per_second` passes on average, `burst` of them at once."""

    def __init__(self, per_second: float, burst: int = 1) -> None:
        self._interval = 1 / per_second
        self._burst = burst
        self._next = -inf

    async def slot(self) -> None:
        """Wait for one's turn."""
        now = time.monotonic()
        self._next = max(self._next, now - self._interval * (self._burst - 1))
        wait = self._next - now
        self._next += self._interval
        if wait > 0:
            await asyncio.sleep(wait)

    def give_back(self) -> None:
        """The turn was not used."""
        self._next -= self._interval
