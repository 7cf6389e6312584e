"""Ctrl-C for commands that wait for the API server: between `asyncio.run` and what the command asks."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, whose event loop every Ctrl-C wakes.

    That of `asyncio.run` alone only leaves a note when it comes just before the loop waits for its next event, and is
    heard when there is one: of an object that does not change, minutes later.

    Raises:
        KeyboardInterrupt: when `work` has ended.
    """
    try:
        return asyncio.run(_interruptible(work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    # Elsewhere no signal is heard at all.
    if task is not None and threading.current_thread() is threading.main_thread():
        # A handler of the loop's own is told by a descriptor that it listens to.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    return await work
