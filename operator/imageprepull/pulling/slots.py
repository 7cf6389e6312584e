"""Turns at unpacking: as many as there are cores, over all images, taken only while there is something to unpack.

A worker that waits for its download gives its turn to another; `plan.next_to_unpack` says to which. Of the workers
of images that are not urgent fewer may have a turn at once while the disks are busy (pressure.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from imageprepull.pulling.plan import Work, beyond_ordinary, memory_fits, next_to_unpack
from imageprepull.unpacking.frontier import Frontier


@dataclass(slots=True, eq=False)
class _Waiting:
    """A worker to be, or one that has given its turn away (without `work`). `counted`: it was admitted as a polite one."""

    work: Work | None
    polite: Callable[[], bool]
    admitted: asyncio.Future[None]
    counted: bool = False


class Slots:
    """`async with slots.turn(work) as turn:` around a worker's life.

    `limit` workers have their turn at once. `spare` more may be alive: they wait for bytes, each with its memory.
    Of the polite ones `polite` have their turn at once; lowering it takes no turn away, fewer are given. Who waits is
    asked each time whether it still is one.
    Those alive share `SHARED_MEMORY` bytes for what they take beyond every worker's.
    `cores`: that workers may use, as many as turns unless given.
    """

    def __init__(self, limit: int, *, spare: int, cores: int = 0) -> None:
        self.limit = max(1, limit)
        self._cores = cores or self.limit
        self._polite = self.limit
        self._spare = spare
        self._running = 0
        self._running_politely = 0
        self._alive = 0
        self._beyond = 0
        self._returning: list[_Waiting] = []
        self._waiting: list[_Waiting] = []

    def __repr__(self) -> str:
        politely = (
            f" ({self._running_politely} of {self._polite} politely)" if self._polite < self.limit else ""
        )
        return (
            f"<Slots {self._running} of {self.limit} taken{politely}, {self._alive} alive, "
            f"{len(self._waiting)} waiting>"
        )

    @property
    def running(self) -> int:
        """How many workers have their turn now."""
        return self._running

    @property
    def crowded(self) -> bool:
        """Whether who has a turn has no core for more than one thread: none is idle, and somebody waits for one."""
        return self._running >= self._cores and any(
            not waiting.admitted.done() for waiting in (*self._returning, *self._waiting)
        )

    @property
    def polite(self) -> int:
        """How many polite workers may have their turn at once."""
        return self._polite

    @polite.setter
    def polite(self, count: int) -> None:
        self._polite = max(1, count)
        self._admit()

    @asynccontextmanager
    async def turn(self, work: Work, *, polite: Callable[[], bool] = lambda: False) -> AsyncIterator[Turn]:
        """Wait for a turn; it ends with the block."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(work, polite, admitted)
        self._waiting.append(waiting)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if _granted(admitted):
                self._ended(work)
                self.give(polite=waiting.counted)
            else:
                self._waiting.remove(waiting)
            raise
        turn = Turn(self, polite, counted=waiting.counted)
        try:
            yield turn
        finally:
            self._ended(work)
            if turn.taken:
                self.give(polite=turn.counted)
            else:
                self._admit()

    def look_again(self) -> None:
        """Somebody who waits is polite no more."""
        self._admit()

    async def take_again(self, polite: Callable[[], bool]) -> bool:
        """For a turn: wait for it after it was given away; whether as a polite one. Those who began earlier come first."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(None, polite, admitted)
        self._returning.append(waiting)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if _granted(admitted):
                self.give(polite=waiting.counted)
            else:
                self._returning.remove(waiting)
            raise
        return waiting.counted

    def give(self, *, polite: bool) -> None:
        """For a turn: let another have it."""
        self._running -= 1
        self._running_politely -= polite
        self._admit()

    def _ended(self, work: Work) -> None:
        self._alive -= 1
        self._beyond -= beyond_ordinary(work.memory)

    def _admit(self) -> None:
        while self._running < self.limit and (chosen := self._next()) is not None:
            self._running += 1
            chosen.counted = chosen.polite()
            self._running_politely += chosen.counted
            chosen.admitted.set_result(None)

    def _next(self) -> _Waiting | None:
        """Who gets the next turn, taken from those who wait; None when nobody may have it."""
        politely = self._running_politely < self._polite

        def may(waiting: _Waiting) -> bool:
            # One that was cancelled takes itself out at its next turn of the loop.
            return not waiting.admitted.done() and (politely or not waiting.polite())

        for waiting in self._returning:
            if may(waiting):
                self._returning.remove(waiting)
                return waiting
        offered = [
            (waiting, waiting.work)
            for waiting in self._waiting
            if may(waiting) and waiting.work is not None and memory_fits(waiting.work.memory, self._beyond)
        ]
        if not offered or self._alive >= self.limit + self._spare:
            return None
        chosen, work = offered[next_to_unpack([work for _, work in offered], self.limit)]
        self._waiting.remove(chosen)
        self._alive += 1
        self._beyond += beyond_ordinary(work.memory)
        return chosen


class Turn:
    """The turn of one worker; `taken` while it has it, `counted` among the polite ones then."""

    def __init__(self, slots: Slots, polite: Callable[[], bool], *, counted: bool) -> None:
        self.taken = True
        self.counted = counted
        self._slots = slots
        self._polite = polite

    def follow(self, frontier: Frontier) -> Frontier:
        """The same frontier; whoever waits at it has given the turn away meanwhile."""
        return _Followed(frontier, self)

    async def without(self, waiting: asyncio.Future[int]) -> int:
        """Give the turn away until `waiting` is done, then take it again."""
        self.taken = False
        self._slots.give(polite=self.counted)
        result = await waiting
        self.counted = await self._slots.take_again(self._polite)
        self.taken = True
        return result


class _Followed(Frontier):
    def __init__(self, inner: Frontier, turn: Turn) -> None:
        super().__init__(inner.size, inner.held)
        self._inner = inner
        self._turn = turn

    async def beyond(self, offset: int) -> int:
        """As the frontier that it follows."""
        waiting = asyncio.ensure_future(self._inner.beyond(offset))
        try:
            # One step: enough for bytes that are there already.
            await asyncio.sleep(0)
            held = await waiting if waiting.done() else await self._turn.without(waiting)
        finally:
            waiting.cancel()
        self.advance(held)
        return held


def _granted(admitted: asyncio.Future[None]) -> bool:
    """Whether admission and cancellation fell into the same turn of the loop."""
    return admitted.done() and not admitted.cancelled()
