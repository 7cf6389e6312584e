"""Polite workers follow the disks. A FAKE pressure file: nobody can make the kernel's own say a given figure."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.plan import Work
from imageprepull.pulling.pressure import PressureTerms, follow, next_limit, read_stalled
from imageprepull.pulling.slots import Slots
from imageprepull.unpacking.frontier import Frontier

TERMS = PressureTerms(low=15, high=40)
FIGURES = """\
some avg10={} avg60=4.87 avg300=5.37 total=54488342
full avg10=1.23 avg60=1.34 avg300=1.58 total=16000553
"""


def test_the_figure_is_that_of_some_task_in_ten_seconds(tmp_path: Path) -> None:
    file = tmp_path / "io"
    assert read_stalled(file) is None
    file.write_text(FIGURES.format("6.74"))
    assert read_stalled(file) == 6.74
    file.write_text("something else\n")
    assert read_stalled(file) is None


@pytest.mark.parametrize(
    ("limit", "stalled", "expected"),
    [(4, 90, 3), (4, 40, 3), (4, 39.9, 4), (3, 15.1, 3), (3, 15, 4), (4, 0, 4), (1, 100, 1), (1, None, 4)],
)
def test_one_step_at_a_time_and_none_in_between(limit: int, stalled: float | None, expected: int) -> None:
    assert next_limit(limit, 4, stalled, TERMS) == expected


@given(
    most=st.integers(1, 16),
    figures=st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=40),
)
def test_the_limit_stays_within_its_bounds_and_moves_by_one(most: int, figures: list[float | None]) -> None:
    limit = most
    for stalled in figures:
        following = next_limit(limit, most, stalled, TERMS)
        assert 1 <= following <= most
        assert stalled is None or abs(following - limit) <= 1
        assert stalled is None or not TERMS.low < stalled < TERMS.high or following == limit
        limit = following


async def test_the_limit_follows_the_file_and_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "io"
    file.write_text(FIGURES.format("80.00"))
    seen: asyncio.Queue[int] = asyncio.Queue()
    following = asyncio.create_task(follow(PressureTerms(path=file, interval=0.01), 3, seen.put_nowait))
    async with asyncio.timeout(30):
        assert [await seen.get(), await seen.get()] == [2, 1]
        file.write_text(FIGURES.format("20.00"))
        file.with_name("calm").write_text(FIGURES.format("0.00"))
        file.with_name("calm").replace(file)
        assert [await seen.get(), await seen.get()] == [2, 3]
        file.unlink()
        assert await seen.get() == 3
        await following


async def test_without_the_file_nothing_is_limited(tmp_path: Path) -> None:
    seen: list[int] = []
    await follow(PressureTerms(path=tmp_path / "none"), 4, seen.append)
    assert seen == [4]


async def entered(stack: AsyncExitStack, slots: Slots, number: int, *, polite: bool) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.create_task(
        stack.enter_async_context(slots.turn(Work(number, 10), polite=lambda: polite))
    )
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def test_polite_workers_have_fewer_turns_and_urgent_ones_all() -> None:
    slots = Slots(3, spare=0)
    slots.polite = 1
    async with AsyncExitStack() as stack:
        first = await entered(stack, slots, 0, polite=True)
        second = await entered(stack, slots, 1, polite=True)
        urgent = [await entered(stack, slots, number, polite=False) for number in (2, 3)]
        assert (first.done(), second.done(), [task.done() for task in urgent]) == (True, False, [True, True])
        second.cancel()
        await asyncio.wait([second])
    assert "0 of 3 taken (0 of 1 politely), 0 alive, 0 waiting" in repr(slots)


async def test_a_raised_limit_gives_turns_at_once_and_a_lowered_one_takes_none_away() -> None:
    slots = Slots(3, spare=0)
    slots.polite = 1
    async with AsyncExitStack() as stack:
        tasks = [await entered(stack, slots, number, polite=True) for number in range(3)]
        assert [task.done() for task in tasks] == [True, False, False]
        slots.polite = 2
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, True, False]
        slots.polite = 0
        assert "2 of 3 taken (2 of 1 politely)" in repr(slots)
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])


async def test_who_waits_politely_has_a_turn_when_somebody_waits_for_it() -> None:
    slots, polite = Slots(3, spare=0), [True, True]
    slots.polite = 1
    async with AsyncExitStack() as stack:
        tasks: list[asyncio.Task[object]] = []
        for number in range(2):
            turn = slots.turn(Work(number, 10), polite=partial(polite.__getitem__, number))
            tasks.append(asyncio.create_task(stack.enter_async_context(turn)))
        await asyncio.wait(tasks[:1])
        assert [task.done() for task in tasks] == [True, False]
        polite[1] = False
        slots.look_again()
        await asyncio.wait(tasks, timeout=5)
        assert [task.done() for task in tasks] == [True, True]
        assert "2 of 3 taken (1 of 1 politely)" in repr(slots)
        polite[0] = False
    assert "0 of 3 taken (0 of 1 politely)" in repr(slots), "counted as it was admitted"


async def test_a_worker_that_comes_back_from_its_download_is_polite_no_more_when_somebody_waits() -> None:
    slots, polite = Slots(3, spare=3), [True, True]
    slots.polite = 1
    frontier = Frontier(10)
    async with AsyncExitStack() as stack:
        turn = await stack.enter_async_context(slots.turn(Work(0, 10), polite=lambda: polite[0]))
        back = asyncio.create_task(turn.follow(frontier).beyond(0))
        await stack.enter_async_context(slots.turn(Work(1, 10), polite=lambda: polite[1]))
        frontier.advance(10)
        await asyncio.wait([back], timeout=0.05)
        assert not back.done()
        polite[0] = False
        slots.look_again()
        async with asyncio.timeout(30):
            assert await back == 10
        assert "2 of 3 taken (1 of 1 politely)" in repr(slots)
    assert "0 of 3 taken (0 of 1 politely)" in repr(slots)


async def test_a_turn_for_one_who_was_cancelled_meanwhile_goes_to_the_next() -> None:
    slots = Slots(1, spare=0)
    async with AsyncExitStack() as stack:
        async with slots.turn(Work(0, 10)):
            cancelled = await entered(stack, slots, 1, polite=False)
            following = await entered(stack, slots, 2, polite=True)
            cancelled.cancel()
            # No turn of the loop between the cancellation and the end of the block.
        await asyncio.wait([cancelled, following], timeout=5)
        assert (cancelled.cancelled(), following.done()) == (True, True)
