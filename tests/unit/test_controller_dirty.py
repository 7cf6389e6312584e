import asyncio
import time

import pytest

from imageprepull.controller.dirty import DirtyKeys, Rate, work
from imageprepull.kube.errors import ApiError, ApiUnreachable


async def test_many_marks_are_one_turn() -> None:
    queue: DirtyKeys[str] = DirtyKeys(debounce=0.01)
    for _ in range(100):
        queue.add("a")
    assert await queue.take() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_mark_during_work_brings_the_key_back_and_never_to_two_workers() -> None:
    queue: DirtyKeys[str] = DirtyKeys()
    queue.add("a")
    await queue.take()
    queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.05)
    queue.done("a")
    assert await asyncio.wait_for(queue.take(), 30) == "a"


async def test_the_earlier_mark_wins() -> None:
    queue: DirtyKeys[str] = DirtyKeys()
    queue.add("late", 60)
    queue.add("late", 0.02)
    queue.add("late", 30)
    assert await asyncio.wait_for(queue.take(), 30) == "late"


async def test_a_mark_wakes_a_waiting_worker() -> None:
    queue: DirtyKeys[str] = DirtyKeys()
    queue.add("later", 60)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("now")
    assert await asyncio.wait_for(taking, 30) == "now"


async def test_an_api_error_is_tried_again_and_a_bug_ends_the_worker() -> None:
    queue: DirtyKeys[str] = DirtyKeys()
    answers: list[Exception | None] = [ApiUnreachable("refused"), ApiError(409, "Conflict", "stale"), None]
    tried: list[str] = []
    through = asyncio.Event()

    async def handle(key: str) -> None:
        tried.append(key)
        answer = answers.pop(0) if answers else ZeroDivisionError()
        if answer is not None:
            raise answer
        through.set()

    queue.add("a")
    worker = asyncio.create_task(work(queue, handle, backoff=0.01))
    await asyncio.wait_for(through.wait(), 30)
    assert tried == ["a"] * 3
    queue.add("b")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(worker, 30)


async def test_the_rate_allows_its_burst_and_then_its_pace() -> None:
    slow = Rate(0.001, burst=5)
    async with asyncio.timeout(30):
        for _ in range(5):
            await slow.slot()
    rate = Rate(100, burst=5)
    began = time.monotonic()
    for _ in range(15):
        await rate.slot()
    assert time.monotonic() - began >= 0.095


async def test_a_turn_given_back_is_free_again() -> None:
    rate = Rate(0.001)
    await rate.slot()
    rate.give_back()
    await asyncio.wait_for(rate.slot(), 30)


async def test_keys_that_need_no_request_let_others_in_between() -> None:
    """Thousands of them must not keep the Lease from being renewed."""
    queue: DirtyKeys[int] = DirtyKeys()
    seen: list[int | str] = []

    async def note(key: int) -> None:
        seen.append(key)

    for key in range(3):
        queue.add(key)
    working = asyncio.create_task(work(queue, note))
    async with asyncio.timeout(30):
        while len(seen) < 6:
            seen.append("others")
            await asyncio.sleep(0)
    working.cancel()
    assert "others" in seen[seen.index(0) : seen.index(2)]


@pytest.mark.parametrize("steps", range(5))
async def test_a_worker_that_is_cancelled_in_the_moment_of_a_mark_ends(steps: int) -> None:
    queue: DirtyKeys[str] = DirtyKeys(debounce=1000)
    queue.add("a")
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue.add("b")
    for _ in range(steps):
        await asyncio.sleep(0)
    worker.cancel()
    await asyncio.wait([worker], timeout=1)
    ended = worker.cancelled()
    worker.cancel()
    assert ended
