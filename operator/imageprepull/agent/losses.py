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
    on_loss: Callable[[Collection[str]], None],
    on_freed: Callable[[], None] = lambda: None,
    on_changed: Callable[[Collection[str]], None] = lambda _: None,
    *,
    namespace: str,
    settle: float,
    reconnect: float,
) -> None:
    """Call `on_loss` after losses, `on_freed` after containers went, both whenever some may have been missed.

    `on_loss` is told what was deleted: names of image records, digests of blobs, chain IDs of layers; nothing when some
    may have been missed. `on_changed` is told the names of image records that somebody changed, ourselves included.
    Never ends.

    Events come in swarms (a collection removes one snapshot after the other): all that follow one within `settle`
    seconds are told together. A lost subscription is renewed after `reconnect` seconds.
    """
    losses = _Swarm(on_loss, settle)
    others = {FREED: _Swarm(lambda _: on_freed(), settle), CHANGED: _Swarm(on_changed, settle)}
    try:
        while True:
            try:
                async for event in subscribe((*LOSSES, *(f'topic=="{topic}"' for topic in others))):
                    if event.namespace == namespace:
                        others.get(event.topic, losses).hear(event.subject)
            except RuntimeFault as fault:
                logger.debug("runtime events ended", error=str(fault))
            await asyncio.sleep(reconnect)
            on_loss(())
            on_freed()
    finally:
        for swarm in (losses, *others.values()):
            swarm.forget()


class _Swarm:
    """Events of one kind, until they are told together."""

    def __init__(self, listener: Callable[[Collection[str]], None], settle: float) -> None:
        self._listener = listener
        self._settle = settle
        self._names: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def hear(self, name: str) -> None:
        self._names.add(name)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._settle, self._tell)

    def forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        names, self._names, self._timer = frozenset(self._names), set(), None
        self._listener(names)
