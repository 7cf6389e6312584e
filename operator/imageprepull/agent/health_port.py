"""The agent's port on the node, which it may have to wait for: on the host network an earlier agent may still have it.

Before spool_lock.py in an agent's life: who waits here has touched nothing yet.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from imageprepull.telemetry.health import Health


@asynccontextmanager
async def served(
    health: Health, port: int, host: str | None, *, retry: float, on_wait: Callable[[str], None]
) -> AsyncIterator[int]:
    """Serve while the block runs, as `Health.serve`. `on_wait` hears why it waits, and an empty text at the end.

    While it waits, a kubelet that asks this pod's /livez or /readyz reaches whoever has the port, since both are on the
    node's addresses. Of an agent that is about to end that does no harm: this one is not restarted meanwhile, which is
    right, and a pod that seems ready a moment early has an agent working beside it. Of another program the answer is
    no 200: the pod is not ready, is restarted, and shows that something is wrong.

    Raises:
        OSError: the port cannot be had at all.
    """
    async with AsyncExitStack() as stack:
        while True:
            try:
                bound = await stack.enter_async_context(health.serve(port, host))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            on_wait(
                f"port {port} is taken by another agent of this node, or by another program; waiting until it is free"
            )
            await asyncio.sleep(retry)
        on_wait("")
        yield bound
