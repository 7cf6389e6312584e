"""All bytes of one blob into its spool file, over as many connections as the pool gives it.

Between `download`, which judges the finished blob, and `connection`, which is one request. What is known about the
blob's ranges is kept here: which are held, on their way, or waiting after a fault. A fault costs its own range only.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

import structlog

from imageprepull.pulling.assignment import BlobWork, Reach, next_span
from imageprepull.pulling.connection import Order, fetch_span
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.ranges import Span
from imageprepull.pulling.retry import RetryState
from imageprepull.pulling.threads import in_thread
from imageprepull.registry.errors import ErrorKind, RegistryError

UNAVAILABLE = 503
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Trouble:
    """A range that failed: its faults so far, and what the blob held at the last of them."""

    retry: RetryState = field(default_factory=RetryState)
    held: int = 0


@dataclass(slots=True)
class _Running:
    """A connection at work. `before`: bytes that the blob held when it began."""

    span: Span
    before: int
    trouble: _Trouble | None
    task: asyncio.Task[None] = field(init=False)


class Filling:
    """One run until every byte is held. `origins` are the registry hosts that sent some of them, `fetched` how many."""

    def __init__(self, order: Order) -> None:
        """Nothing is asked yet."""
        self.origins: set[str] = set()
        self.fetched = 0
        self._order = order
        self._reach = Reach.UNKNOWN
        self._running: list[_Running] = []
        self._waiting: dict[int, tuple[Span, _Trouble, asyncio.TimerHandle]] = {}
        self._troubles: dict[int, _Trouble] = {}
        self._served = order.pool.starts
        self._resting: asyncio.TimerHandle | None = None
        self._failure: PullError | None = None
        self._over = asyncio.Event()
        self._grown = asyncio.Event()

    async def run(self) -> None:
        """Return when the blob is complete; its digest is the caller's to judge.

        Raises:
            PullError: what the registry said last of a range that cannot be had.
        """
        spool, pool = self._order.spool, self._order.pool
        if spool.held.complete:
            if not spool.opened:  # an empty blob: there is nothing to begin.
                await in_thread(spool.open)
                self._order.listener.opened()
            return
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                number = pool.join(self)
                follower = group.create_task(self._follow(), name=f"hash {self._order.descriptor.digest}")
                try:
                    await self._over.wait()
                finally:
                    pool.leave(number)
                    for task in (follower, *(running.task for running in self._running)):
                        task.cancel()
        finally:
            for _, _, timer in self._waiting.values():
                timer.cancel()
            if self._resting is not None:
                self._resting.cancel()
        if self._failure is not None:
            raise self._failure

    def work(self, number: int) -> BlobWork:
        """For the pool."""
        held = self._order.spool.held
        return BlobWork(
            number=number,
            priority=self._order.listener.priority,
            size=held.size,
            held=held.ranges,
            busy=[running.span for running in self._running] + [span for span, *_ in self._waiting.values()],
            running=len(self._running),
            reach=self._reach_now(),
            served=self._served,
            resting=self._resting is not None,
        )

    def begin(self, span: Span, turn: int) -> None:
        """Fetch a range: the pool says which."""
        self._served = turn
        running = _Running(span, self._order.spool.held.held, self._troubles.pop(span[0], None))
        running.task = self._group.create_task(
            self._fetch(running), name=f"fetch {self._order.descriptor.digest} {span[0]}-{span[1]}"
        )
        self._running.append(running)
        # A task that is cancelled before it ran never comes to its own `finally`.
        running.task.add_done_callback(lambda _: self._ended(running))

    def _ended(self, running: _Running) -> None:
        if running in self._running:
            self._running.remove(running)
        self._order.pool.ended()

    def _reach_now(self) -> Reach:
        if self._reach is Reach.UNKNOWN and self._order.registry.gives_whole_blobs(self._order.reference):
            return Reach.STREAM
        return self._reach

    async def _fetch(self, running: _Running) -> None:
        spool = self._order.spool
        try:
            if await self._opened(running):
                await fetch_span(self._order, self, running.span)
        except Exception as error:  # noqa: BLE001 - as_pull_error raises again what is no failure of the pull.
            if isinstance(error, RegistryError) and _pushes_back(error):
                self._order.pool.pushed_back()
            self._failed(running, as_pull_error(error, f"blob {self._order.descriptor.digest}"))
        if spool.opened and spool.held.complete:
            self._over.set()

    async def _opened(self, running: _Running) -> bool:
        """Open the file before the first request: only then is it known which bytes are missing, and whether any are.

        Not earlier: hundreds of layers wait for their turn, and each would hold descriptors.
        """
        spool = self._order.spool
        if spool.opened:
            return True
        await in_thread(spool.open)
        self._order.listener.opened()
        work = replace(self.work(0), busy=(), running=0)
        span = next_span(work, self._order.settings.range_size)
        if span is not None:
            running.span, running.before = span, spool.held.held
        return span is not None

    async def answered(self, origin: str, *, ranged: bool | None) -> None:
        """For a connection: its stream begins."""
        self.origins.add(origin)
        if ranged is None:
            return
        if ranged and self._reach is Reach.UNKNOWN:
            self._reach = Reach.RANGES
            self._order.pool.changed()
        if ranged:
            return
        self._reach = Reach.STREAM
        for _, _, timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        others = []
        for running in self._running:
            if running.task is asyncio.current_task():
                running.span = (0, self._order.descriptor.size)
            else:
                running.task.cancel()
                others.append(running.task)
        if others:
            # Their last bytes are being written; ours must not be written over them.
            await asyncio.wait(others)

    def received(self, host: str, count: int) -> None:
        """For a connection: a batch was written."""
        self._order.listener.received(host, count)
        self.fetched += count
        if count:
            self._order.pool.came(count)
            self._grown.set()

    async def _follow(self) -> None:
        """Let the hash follow the frontier where bytes come out of order, so that it is done soon after the last."""
        spool, step = self._order.spool, self._order.settings.hash_step
        while True:
            await self._grown.wait()
            self._grown.clear()
            while spool.unhashed >= step:
                await in_thread(lambda: spool.hash_on(step))

    def _failed(self, running: _Running, failure: PullError) -> None:
        spool, settings = self._order.spool, self._order.settings
        rest = next(spool.held.missing(*running.span), None)
        if rest is None:
            return
        held = spool.held.held
        trouble = running.trouble or _Trouble(held=running.before)
        delay = trouble.retry.decide(
            failure,
            gained=held > trouble.held,
            chance=random.random(),  # noqa: S311 - jitter, not a secret.
            settings=settings,
        )
        trouble.held = held
        if delay is None:
            self._failure = self._failure or failure
            self._over.set()
            return
        log.info(
            "retrying a blob",
            blob=self._order.descriptor.digest,
            offset=rest[0],
            held=held,
            failures=trouble.retry.failures,
            delay=round(delay, 2),
            reason=failure.reason,
            error=failure.message,
        )
        self._running.remove(running)
        loop = asyncio.get_running_loop()
        rest = (rest[0], running.span[1])
        self._waiting[rest[0]] = (rest, trouble, loop.call_later(delay, self._again, rest[0]))
        if failure.retry_after is not None:
            # It was said to us, not to one of our connections.
            if self._resting is not None:
                self._resting.cancel()
            self._resting = loop.call_later(delay, self._rested)

    def _again(self, start: int) -> None:
        _, self._troubles[start], _ = self._waiting.pop(start)
        self._order.pool.changed()

    def _rested(self) -> None:
        self._resting = None
        self._order.pool.changed()


def _pushes_back(error: RegistryError) -> bool:
    return (
        error.kind is ErrorKind.THROTTLED or error.status == UNAVAILABLE or error.reason == "ConnectionLost"
    )
