"""One agent per spool: during a DaemonSet's surge, or when somebody runs a second one by hand, the later waits."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

LOCK_NAME = "agent.lock"


@asynccontextmanager
async def locked(spool: Path, *, retry: float, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the spool's lock while the block runs. `on_wait` hears why it waits, and an empty text at the end.

    flock, because the kernel drops it with the process however that ends.

    Raises:
        OSError: the spool directory cannot be made or opened.
    """
    handle = open_lock(spool)
    try:
        while not try_lock(handle):
            on_wait(f"another agent holds {spool / LOCK_NAME}; waiting until it ends")
            await asyncio.sleep(retry)
        on_wait("")
        yield
    finally:
        os.close(handle)


def open_lock(spool: Path) -> int:
    """The lock file's descriptor; makes the spool directory, readable by nobody else."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(spool / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(handle: int) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
