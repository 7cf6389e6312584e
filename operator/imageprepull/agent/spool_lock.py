"""One agent per spool: during a DaemonSet's surge, or when somebody runs a second one by hand, the later waits."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def locked(spool: Path, *, retry: float, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the spool's lock while the block runs. `on_wait` hears why it waits, and an empty text at the end.

    flock, because the kernel drops it with the process however that ends; on the directory itself, because whoever
    empties it (a cleaner, `rm -r spool/*`) must not let a second agent in beside the one that holds it. Against the
    removal of the directory under its holder nothing helps: the next agent makes another one.

    Raises:
        OSError: the spool directory cannot be made or opened.
    """
    while (handle := try_lock(spool)) is None:
        on_wait(f"another agent holds {spool}; waiting until it ends")
        await asyncio.sleep(retry)
    on_wait("")
    try:
        yield
    finally:
        os.close(handle)


def try_lock(spool: Path) -> int | None:
    """The descriptor that holds the lock now, or None. Makes the spool directory, readable by nobody else.

    Raises:
        OSError: it cannot be made or opened.
    """
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ours = False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If there is another one of that name since it was opened, who holds that one has the spool.
        ours = os.path.samestat(os.fstat(handle), spool.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    finally:
        if not ours:
            os.close(handle)
    return handle if ours else None
