"""Signals that cancel what a command does: between `asyncio.run` and the command."""

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
        return asyncio.run(cancelled_by(signal.SIGINT, work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def cancelled_by(number: signal.Signals, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, which the signal cancels. Its handler is the loop's own, told by a descriptor that it listens to."""
    task = asyncio.current_task()
    # Elsewhere no signal is heard at all.
    if task is not None and threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work
