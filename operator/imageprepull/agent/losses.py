"""The runtime's own events as a hint that images may be gone (garbage collection, `crictl rmi`, a restart), or free.

Only hints: the reconciler asks the runtime anew, and a slow resync finds what no event told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import structlog

from imageprepull.runtime.errors import RuntimeFault

logger = structlog.get_logger(__name__)

# Committed layers only: each layer that is unpacked leaves an active snapshot to be removed.
FREED = "/containers/delete"
CHANGED = "/images/update"
LOSSES = (
    'topic=="/images/delete"',
    'topic=="/content/delete"',
    'topic=="/snapshot/remove",event.key~="^sha256:"',
)


async def follow_losses(
    subscribe: Callable[[Sequence[str]], AsyncIterator[Any]],
    on_loss: Callable[[], None],
    on_freed: Callable[[], None] = lambda: None,
    on_changed: Callable[[Collection[str]], None] = lambda _: None,
    *,
    namespace: str,
    settle: float,
    reconnect: float,
) -> None:
    """Call `on_loss` after losses, `on_freed` after containers went, both whenever some may have been missed.

    `on_changed` is told the names of image records that somebody changed, ourselves included. Never ends.

    Events come in swarms (a collection removes one snapshot after the other): all that follow one within `settle`
    seconds are told together. A lost subscription is renewed after `reconnect` seconds.
    """
    loop = asyncio.get_running_loop()
    pending: dict[Callable[[], None], asyncio.TimerHandle] = {}
    changed: set[str] = set()

    def tell(listener: Callable[[], None]) -> None:
        del pending[listener]
        listener()

    def tell_changed() -> None:
        names = frozenset(changed)
        changed.clear()
        on_changed(names)

    listeners = {FREED: on_freed, CHANGED: tell_changed}
    try:
        while True:
            try:
                async for event in subscribe((*LOSSES, *(f'topic=="{topic}"' for topic in listeners))):
                    if event.namespace != namespace:
                        continue
                    if event.topic == CHANGED:
                        changed.add(event.image)
                    listener = listeners.get(event.topic, on_loss)
                    if listener not in pending:
                        pending[listener] = loop.call_later(settle, tell, listener)
            except RuntimeFault as fault:
                logger.debug("runtime events ended", error=str(fault))
            await asyncio.sleep(reconnect)
            on_loss()
            on_freed()
    finally:
        for timer in pending.values():
            timer.cancel()
