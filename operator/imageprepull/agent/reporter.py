"""Brings the node's status to the API server, sampled.

Between the reconciler, which only says that something changed, and the API client. The schedule is pure (`Schedule`);
the loop around it waits, builds and writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from imageprepull.agent.clock import Clock
from imageprepull.agent.pace import Pace
from imageprepull.agent.status import Report, build_status, patch_of, same_news, verdict_of
from imageprepull.kube.errors import ApiError
from imageprepull.resources.nodeprepull import NodePrepullStatus
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)


class StatusWriter(Protocol):
    """Writes one merge patch of the status; raises `ApiError`."""

    def __call__(self, patch: dict[str, object]) -> Awaitable[object]:
        """One write."""


@dataclass(slots=True)
class Schedule:
    """When the next write is due. Times are monotonic seconds."""

    sample_at: float = 0
    """No sampled write before this."""
    heartbeat_at: float = 0
    urgent_at: float | None = None
    blocked_until: float = 0
    failures: int = 0

    def next_write(self, *, changed: bool) -> float:
        """The earliest moment at which something is to be written."""
        moments = [self.heartbeat_at]
        if changed:
            moments.append(self.sample_at)
        if self.urgent_at is not None:
            moments.append(self.urgent_at)
        return max(self.blocked_until, min(moments))

    def hurry(self, now: float, spread: float, uniform: float) -> None:
        """News of the whole node: at once, in a storm within `spread`. A second one does not put the first off."""
        if self.urgent_at is None:
            self.urgent_at = now + spread * uniform

    def written(self, now: float, pace: Pace, uniform: float) -> None:
        """After a success: the next sample an interval ± 20 % from now, and the heartbeat likewise."""
        jitter = 0.8 + 0.4 * uniform
        self.sample_at = now + pace.report_interval * jitter
        self.heartbeat_at = now + pace.heartbeat * jitter
        self.settled()

    def settled(self) -> None:
        """Nothing urgent and nothing failed any more."""
        self.urgent_at = None
        self.blocked_until = 0
        self.failures = 0

    def refused(
        self, now: float, retry_after: float | None, uniform: float, *, base: float, cap: float
    ) -> None:
        """After a failure: exponential, jittered, and never before the server's own Retry-After."""
        delay = min(cap, base * 2.0 ** min(self.failures, 16)) * (0.5 + 0.5 * uniform)
        self.failures += 1
        self.blocked_until = now + max(delay, retry_after or 0)


class Reporter:
    """Writes `collect()` whenever it is due. `collect` returns None while there is no object to write to."""

    def __init__(
        self,
        write: StatusWriter,
        collect: Callable[[], Report | None],
        *,
        pace: Pace,
        clock: Clock,
        metrics: AgentMetrics,
        backoff_base: float = 1,
        backoff_cap: float = 60,
        glance: float = 0.2,
    ) -> None:
        self.pace = pace
        self.problem = ""
        self._write = write
        self._collect = collect
        self._clock = clock
        self._metrics = metrics
        self._backoff = (backoff_base, backoff_cap)
        self._glance = glance
        self._schedule = Schedule()
        self._woken = asyncio.Event()
        self._last: NodePrepullStatus | None = None

    def changed(self) -> None:
        """Something may be new. Cheap: called for every chunk of every layer."""
        self._woken.set()

    def forget(self) -> None:
        """Another object stands behind the name now: whatever was written is not in it."""
        self._last = None
        self._schedule.settled()
        self._schedule.sample_at = self._schedule.heartbeat_at = self._clock.now()
        self._woken.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._woken.clear()
            wait = await self.step()
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                continue
            # Progress wakes us hundreds of times a second; a status is built at most every `glance` seconds.
            await asyncio.sleep(self._glance)

    async def step(self) -> float | None:
        """Write if something is due; returns the seconds until that may be so without a further change."""
        report = self._collect()
        if report is None:
            return None
        now = self._clock.now()
        status = build_status(report, self._clock.stamp())
        last = self._last
        changed = last is None or not same_news(last, status)
        if last is not None and changed and verdict_of(status) not in (verdict_of(last), "working"):
            self._schedule.hurry(now, self.pace.spread, self._clock.uniform())
        due = self._schedule.next_write(changed=changed)
        if due > now:
            return due - now
        await self._put(status)
        return max(0.0, self._schedule.next_write(changed=False) - self._clock.now())

    async def last_words(self) -> None:
        """One try to write what stands at the end, whatever the schedule says."""
        report = self._collect()
        if report is not None:
            await self._put(build_status(report, self._clock.stamp()))

    async def _put(self, status: NodePrepullStatus) -> None:
        try:
            await self._write(patch_of(status))
        except ApiError as error:
            self._metrics.status_written(str(error.status))
            base, cap = self._backoff
            now = self._clock.now()
            self._schedule.refused(now, error.retry_after, self._clock.uniform(), base=base, cap=cap)
            if self.problem != error.reason:
                logger.warning("cannot report the node's status", error=str(error))
            self.problem = error.reason
            return
        if self.problem:
            logger.info("reporting the node's status again")
        self.problem = ""
        self._last = status
        self._metrics.status_written("ok")
        self._schedule.written(self._clock.now(), self.pace, self._clock.uniform())
