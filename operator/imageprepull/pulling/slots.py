"""Turns at unpacking: as many as there are cores, over all images, taken only while there is something to unpack.

A worker that waits for its download gives its turn to another; `plan.next_to_unpack` says to which.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from imageprepull.pulling.plan import Work, next_to_unpack
from imageprepull.unpacking.frontier import Frontier


class Slots:
    """`async with slots.turn(work) as turn:` around a worker's life.

    `limit` workers have their turn at once. `spare` more may be alive: they wait for bytes, each with its memory.
    """

    def __init__(self, limit: int, *, spare: int) -> None:
        self.limit = max(1, limit)
        self._spare = spare
        self._running = 0
        self._alive = 0
        self._returning: deque[asyncio.Future[None]] = deque()
        self._waiting: list[tuple[Work, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<Slots {self._running} of {self.limit} taken, {self._alive} alive, {len(self._waiting)} waiting>"

    @asynccontextmanager
    async def turn(self, work: Work) -> AsyncIterator[Turn]:
        """Wait for a turn; it ends with the block."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, admitted))
        self._admit()
        turn = Turn(self)
        try:
            await admitted
        except asyncio.CancelledError:
            if _granted(admitted):
                self._alive -= 1
                self.give()
            else:
                self._waiting.remove((work, admitted))
            raise
        try:
            yield turn
        finally:
            self._alive -= 1
            if turn.taken:
                self.give()
            else:
                self._admit()

    async def take_again(self) -> None:
        """For a turn: wait for it after it was given away. Those who began earlier come first."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append(admitted)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if _granted(admitted):
                self.give()
            else:
                self._returning.remove(admitted)
            raise

    def give(self) -> None:
        """For a turn: let another have it."""
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._running < self.limit:
            if self._returning:
                self._returning.popleft().set_result(None)
            elif self._waiting and self._alive < self.limit + self._spare:
                chosen = next_to_unpack([work for work, _ in self._waiting], self.limit)
                _, admitted = self._waiting.pop(chosen)
                self._alive += 1
                admitted.set_result(None)
            else:
                return
            self._running += 1


class Turn:
    """The turn of one worker; `taken` while it has it."""

    def __init__(self, slots: Slots) -> None:
        self.taken = True
        self._slots = slots

    def follow(self, frontier: Frontier) -> Frontier:
        """The same frontier; whoever waits at it has given the turn away meanwhile."""
        return _Followed(frontier, self)

    async def without(self, waiting: asyncio.Future[int]) -> int:
        """Give the turn away until `waiting` is done, then take it again."""
        self.taken = False
        self._slots.give()
        result = await waiting
        await self._slots.take_again()
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
