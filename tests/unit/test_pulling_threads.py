"""Work in threads is over when its caller is, however often that one is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from imageprepull.pulling.threads import in_thread


async def test_the_result_and_the_error_come_through() -> None:
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_every_cancellation_waits_for_the_thread(cancellations: int) -> None:
    begun, release, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(20)
        done.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 20)
    for _ in range(cancellations):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
