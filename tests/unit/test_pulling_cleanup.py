"""What follows a failure, and what waits for a daemon that is being restarted."""

from __future__ import annotations

import asyncio

import pytest

from imageprepull.pulling import cleanup
from imageprepull.pulling.cleanup import heeding, patiently
from imageprepull.runtime.errors import NotFound, Unavailable

AWAY = Unavailable("drop the lease", "nobody listens")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_DAEMON_POLL", 0.001)


class Work:
    """Fails with these errors, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    async def do(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_an_absent_daemon_is_waited_for() -> None:
    group = BaseExceptionGroup("two blobs", [AWAY, AWAY])
    assert await patiently(Work(AWAY, group, AWAY).do, 10) == "done"


async def test_it_is_not_waited_for_too_long() -> None:
    work = Work(*[AWAY] * 1000)
    with pytest.raises(Unavailable):
        await patiently(work.do, 0.02)
    assert len(work.errors) < 999


@pytest.mark.parametrize(
    "error", [NotFound("stat", "gone"), BaseExceptionGroup("", [NotFound("stat", "gone")])]
)
async def test_other_errors_are_none_of_its_business(error: BaseException) -> None:
    work = Work(error, error)
    with pytest.raises(type(error)):
        await patiently(work.do, 10)
    assert len(work.errors) == 1


async def test_a_cancellation_while_work_fails_is_heeded() -> None:
    gone_on = False

    async def fail(worker: asyncio.Task[None]) -> None:
        worker.cancel()
        raise ValueError

    async def work(worker: asyncio.Task[None]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(worker))

    async def worker() -> None:
        nonlocal gone_on
        me = asyncio.current_task()
        assert me is not None
        try:
            await heeding(work(me))
        except* ValueError:
            pass
        gone_on = True
        await asyncio.sleep(0)

    task = asyncio.create_task(worker())
    await asyncio.wait([task])
    assert task.cancelled()
    assert not gone_on


async def test_heeded_work_answers_and_fails_as_it_is() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("as it is")

    assert await heeding(answer()) == 7
    with pytest.raises(ValueError, match="as it is"):
        await heeding(fail())


async def test_heeded_work_is_stopped_and_ends_before_its_caller() -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("work")

    async def caller() -> None:
        try:
            await heeding(work())
        finally:
            ended.append("caller")

    task = asyncio.create_task(caller())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["work", "caller"]
