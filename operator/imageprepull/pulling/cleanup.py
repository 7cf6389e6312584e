"""Cleaning up after a failure or a cancellation: it must end, and it must not be interrupted a second time.

Nor may a daemon that is just being restarted keep it from its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from imageprepull.pulling.errors import first_error
from imageprepull.runtime.errors import Unavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")
_DAEMON_POLL = 0.2


async def finish_anyway(work: Coroutine[Any, Any, object], seconds: float) -> None:
    """Run `work` to its end, or for `seconds`, whatever happens to the caller meanwhile.

    A failure is logged and not raised: the error that led here is the one to report. A cancellation that arrives
    is raised again afterwards.
    """
    task = asyncio.create_task(_bounded(work, seconds))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def heeding(work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, of which a failure may be handled by going on: a cancellation that comes while it fails is not lost.

    A task group that is ending takes one for its own (before Python 3.13). Here it meets the caller, and `work` is stopped.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        await stopped(task)
    return task.result()


async def stopped(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their ends, whatever happens to the caller meanwhile.

    What they end with stays theirs. A cancellation that arrives is raised again afterwards.
    """
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at: else the loop says that nobody has.
    if cancelled is not None:
        raise cancelled


async def _bounded(work: Coroutine[Any, Any, object], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except Exception as error:  # noqa: BLE001 - see finish_anyway.
        log.warning("cleaning up failed", error=str(error) or type(error).__name__)


async def patiently(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Do `work`, and again for `seconds` as long as nobody listens at the runtime's socket, as while it is restarted.

    Raises:
        Unavailable: the runtime did not come back in time.
        Exception: what `work` fails with otherwise.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            return await work()
        except (Unavailable, BaseExceptionGroup) as error:
            first = first_error(error) if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(first, Unavailable) or loop.time() > until:
                raise
        await asyncio.sleep(_DAEMON_POLL)
