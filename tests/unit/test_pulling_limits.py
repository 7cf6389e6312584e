"""Limiter and keyed lock: who goes first, what a cancellation gives back, what a new limit changes."""

from __future__ import annotations

import asyncio

import pytest

from imageprepull.pulling.keyed_lock import KeyedLock
from imageprepull.pulling.limiter import Limiter


async def settle() -> None:
    """Let every task run until it waits for something that only the test gives."""
    for _ in range(10):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that hold a slot until they are told to go."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.entered: list[str] = []
        self.exits: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def send(self, name: str, priority: int = 0) -> None:
        self.exits[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, priority))

    async def _hold(self, name: str, priority: int) -> None:
        async with self.limiter.slot(priority):
            self.entered.append(name)
            await self.exits[name].wait()

    async def dismiss(self, *names: str) -> None:
        for name in names:
            self.exits[name].set()
            await self.tasks[name]
        await settle()


async def test_the_most_urgent_waiter_goes_first_and_equal_ones_in_order() -> None:
    crowd = Crowd(Limiter(1))
    for name, priority in (("first", 9), ("late", 5), ("low", 0), ("late too", 5)):
        crowd.send(name, priority)
        await settle()
    for name in ("first", "low", "late", "late too"):
        await crowd.dismiss(name)
    assert crowd.entered == ["first", "low", "late", "late too"]
    assert crowd.limiter.held == 0


async def test_a_raised_limit_admits_at_once_and_a_lowered_one_as_holders_leave() -> None:
    crowd = Crowd(Limiter(1))
    for name in "abcd":
        crowd.send(name)
    await settle()
    crowd.limiter.limit = 3
    await settle()
    assert crowd.entered == ["a", "b", "c"]
    crowd.limiter.limit = 1
    await crowd.dismiss("a", "b")
    assert crowd.entered == ["a", "b", "c"]
    await crowd.dismiss("c", "d")
    assert crowd.entered == ["a", "b", "c", "d"]


async def test_a_cancelled_waiter_takes_no_slot() -> None:
    crowd = Crowd(Limiter(1))
    for name in "abc":
        crowd.send(name)
    await settle()
    crowd.tasks["b"].cancel()
    await settle()
    await crowd.dismiss("a", "c")
    assert (crowd.entered, crowd.limiter.held) == (["a", "c"], 0)


async def test_a_waiter_cancelled_in_the_turn_of_its_admission_gives_the_slot_back() -> None:
    crowd = Crowd(Limiter(1))
    async with crowd.limiter.slot():
        crowd.send("b")
        crowd.send("c")
        await settle()
    # b is admitted and has not run yet: nothing has been awaited since.
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.entered == ["c"]
    await crowd.dismiss("c")
    assert crowd.limiter.held == 0


async def test_slots_taken_without_waiting_count_and_are_refused_beyond_the_limit() -> None:
    crowd = Crowd(Limiter(2))
    assert crowd.limiter.take()
    crowd.send("a")
    await settle()
    assert not crowd.limiter.take()
    crowd.send("b")
    await settle()
    crowd.limiter.give()
    await settle()
    assert crowd.entered == ["a", "b"]
    await crowd.dismiss("a", "b")
    assert crowd.limiter.held == 0


async def test_whoever_watches_is_told_of_a_new_limit() -> None:
    limiter = Limiter(2)
    seen: list[int] = []
    limiter.watch(lambda: seen.append(limiter.limit))
    limiter.limit = 5
    limiter.limit = 0
    assert seen == [5, 1]


async def test_a_key_admits_one_at_a_time_and_other_keys_do_not_wait() -> None:
    locks = KeyedLock()
    log: list[str] = []

    async def hold(key: str, name: str) -> None:
        async with locks.hold(key):
            log.append(f"+{name}")
            await settle()
            log.append(f"-{name}")

    await asyncio.gather(hold("x", "a"), hold("x", "b"), hold("y", "c"))
    assert log.index("-a") < log.index("+b")
    assert log.index("+c") < log.index("-a")
    assert len(locks) == 0


async def test_a_failure_frees_the_key() -> None:
    locks = KeyedLock()
    with pytest.raises(ValueError, match="why"):
        async with locks.hold("x"):
            raise ValueError("why")
    assert len(locks) == 0
