"""List once, watch from there, and keep a cache that can be trusted: above client.py, below agent and operator.

A level-triggered source: `on_change` says what happened, `cache` says what is. A lost connection continues from the
last resourceVersion without a gap; only a compacted one (410) or a resync needs a new list, whose differences are
then reported as not witnessed. What requests of the owner answer is handed in (`answered`, `read`, `missing`): the
cache is the only memory, or a list could not tell what a write of ours has changed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from imageprepull.kube.cache import (
    Change,
    Document,
    Key,
    key_of,
    put,
    remove,
    replace_all,
    take_event,
    uid_of,
    version_of,
    went_back,
)
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import Kind
from imageprepull.kube.sight import Sight

logger = structlog.get_logger(__name__)
EARLY = 1.0
"""Seconds before its time at which a watch that ends was not ended for its time: clocks of two machines measured it."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Delays in seconds. `silence`: a watch without a byte (bookmarks come every minute) is dead.

    `relist_jitter` spreads the lists of all watchers after an API server lost its history. Backoff doubles from
    `backoff_base` to `backoff_cap`, each time between half and the whole of it.
    """

    silence: float = 70
    server_timeout: float = 300
    relist_jitter: float = 5
    backoff_base: float = 1
    backoff_cap: float = 30


class Informer:
    """A cache of the objects of one kind (`namespace`, selectors narrow it), kept by `run()`.

    `on_change` is called on the event loop for each change, after `cache` has it; it must not block.
    `uniform` gives the jitter, in [0, 1). `resync` seconds apart (0: never) the cache is compared with a fresh
    quorum list.
    """

    def __init__(
        self,
        api: ApiClient,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        on_change: Callable[[Change], None],
        resync: float = 0,
        timings: Timings = Timings(),
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.kind = kind
        self.cache: dict[Key, Document] = {}
        self.synced = asyncio.Event()
        self.sight = Sight(kind.plural)
        self.version = ""
        """The resourceVersion that was last heard."""
        self.newest = 0
        """The highest that was heard, by answers too, since the beginning or `start_over`: higher than `version` after a
        restore."""
        self._api = api
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._on_change = on_change
        self._resync = resync
        self._timings = timings
        self._uniform = uniform
        self._failures = 0
        self._watching: asyncio.Timeout | None = None
        self._answers: dict[Key, Document] = {}
        """What was handed in since the last list was asked for."""

    async def run(self) -> None:
        """Follow the API server until cancelled. API failures are waited out; a failing `on_change` is raised."""
        while True:
            try:
                await self._relist()
                await self._watch_until_resync()
            except ApiError as error:
                await self._wait_out(error)

    def start_over(self) -> None:
        """List anew at once, and not be `synced` before: what was heard is not what is there any more."""
        self.synced.clear()
        self.version = ""
        self.newest = 0
        self.sight.start_over()
        if self._watching is not None and not self._watching.expired():
            self._watching.reschedule(asyncio.get_running_loop().time())

    def answered(self, document: Document) -> None:
        """The answer to a write. The watch may have overtaken it, with what others wrote at once: that stays.

        So does that it was deleted, and perhaps made anew: no event would tell once more.
        """
        known = self.cache.get(key_of(document))
        version = int(version_of(document))
        if known is not None and uid_of(known) == uid_of(document):
            overtaken = version < int(version_of(known))
        else:
            overtaken = version <= int(self.version or 0)
        if not overtaken:
            self.read(document)

    def read(self, document: Document) -> None:
        """An object as just read by a request of its own, which counts whatever was known."""
        known = self.cache.get(key_of(document))
        if known is not None and went_back(known, document):
            self.sight.lose()
        self._answers[key_of(document)] = document
        self._note_version(version_of(document))
        self._tell(put(self.cache, document, witnessed=False))

    def missing(self, key: Key) -> None:
        """A request of its own has found nothing there."""
        if key in self.cache:
            self.sight.lose()
        self._answers.pop(key, None)
        self._tell(remove(self.cache, key))

    def _hear(self, version: str) -> None:
        self.version = version
        self._note_version(version)

    def _note_version(self, version: str) -> None:
        self.newest = max(self.newest, int(version or 0))

    async def _relist(self) -> None:
        self._answers.clear()
        found, version = await self._api.list(
            self.kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        older = int(version or 0) < self.newest
        self._hear(version)
        self._failures = 0
        self.sight.listed(older=older)
        # A list that was under way does not take back what a write has just been answered.
        newer = [one for one in self._answers.values() if int(version_of(one)) > int(version)]
        self._tell(replace_all(self.cache, [*found, *newer]))
        self.synced.set()

    async def _watch_until_resync(self) -> None:
        """Watch, over reconnects, until a resync is due. A compacted version ends it as well."""
        due = self._resync * (0.9 + 0.2 * self._uniform()) if self._resync else None
        try:
            async with asyncio.timeout(due) as deadline:
                self._watching = deadline
                while True:
                    try:
                        await self._watch()
                    except ApiError as error:
                        if error.gone:
                            await self._expire()
                            return
                        await self._wait_out(error)
        except TimeoutError:
            if not deadline.expired():
                raise
            logger.debug("resync", kind=self.kind.plural)
        finally:
            self._watching = None

    async def _watch(self) -> None:
        """One watch request, until the server ends it. One that ends without a word counts as a failure."""
        spoke = False
        began = time.monotonic()
        events = self._api.watch(
            self.kind,
            resource_version=self.version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            server_timeout=self._timings.server_timeout,
            silence=self._timings.silence,
            on_open=self.sight.opened,
        )
        async with aclosing(events):
            async for event, document in events:
                spoke = True
                self._failures = 0
                self.sight.contact()
                self._hear(document["metadata"]["resourceVersion"])
                if event != "BOOKMARK":
                    self._tell(take_event(self.cache, event, document))
        lasted = time.monotonic() - began
        if (spoke or lasted >= EARLY) and lasted < self._timings.server_timeout - EARLY:
            self.sight.lose()
        if not spoke and lasted < self._timings.backoff_cap:
            # A server or proxy that closes every watch at once must not be asked in a tight loop.
            await self._pause(self._next_backoff())

    async def _expire(self) -> None:
        logger.info("watch history is compacted, listing anew", kind=self.kind.plural)
        self.sight.lose()
        await self._pause(self._timings.relist_jitter * self._uniform())

    async def _wait_out(self, error: ApiError) -> None:
        delay = max(self._next_backoff(), error.retry_after or 0)
        self.sight.failed(error, listed=self.synced.is_set())
        await self._pause(delay)

    def _next_backoff(self) -> float:
        ceiling = min(self._timings.backoff_cap, self._timings.backoff_base * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return ceiling * (0.5 + 0.5 * self._uniform())

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._on_change(change)


__all__ = ["Change", "Informer", "Timings"]
