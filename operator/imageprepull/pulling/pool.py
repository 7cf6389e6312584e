"""The connections of a node, shared by all blobs: keeps the books, asks `assignment` what to begin, and begins it.

Every blob that lacks bytes (`filling`) joins. Nothing here waits: the pool acts when something changed.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Protocol

from imageprepull.pulling.assignment import BlobWork, assign
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.ranges import Span
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.width import Width


class Job(Protocol):
    """A blob that lacks bytes."""

    def work(self, number: int) -> BlobWork:
        """What of it is to be fetched, under the name that `join` gave it."""

    def begin(self, span: Span, turn: int) -> None:
        """Fetch `span` over a new connection, and call `Pool.ended` when that is over. Must not wait."""


class Pool:
    """At most `limiter.limit` connections; how many of those are used follows throughput and faults."""

    def __init__(self, limiter: Limiter, settings: PullSettings) -> None:
        """Share the slots of `limiter`, of which this is the only user."""
        self._limiter = limiter
        self._settings = settings
        self._width = Width(settings.width)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._starts = 0
        self._received = 0
        self._pumping: asyncio.Handle | None = None
        limiter.watch(self.changed)

    def __repr__(self) -> str:
        """Readable, for logs and tests."""
        return f"<pool of {self._limiter.limit}: {self._limiter.held} for {len(self._jobs)} blobs, {self._width!r}>"

    @property
    def starts(self) -> int:
        """Connections begun so far."""
        return self._starts

    def join(self, job: Job) -> int:
        """Take part; the number to leave with."""
        number = next(self._numbers)
        self._jobs[number] = job
        self.changed()
        return number

    def leave(self, number: int) -> None:
        """Take no further part. Connections that still run end by `ended`."""
        self._jobs.pop(number, None)

    def ended(self) -> None:
        """A connection is over."""
        self._limiter.give()
        self.changed()

    def came(self, count: int) -> None:
        """So many bytes came."""
        self._received += count
        cap = self._limiter.limit
        before = self._width.within(cap)
        full = self._limiter.held >= before
        self._width.observe(asyncio.get_running_loop().time(), self._received, full=full, cap=cap)
        if self._width.within(cap) > before:
            self.changed()

    def pushed_back(self) -> None:
        """A registry throttled, was overloaded or cut a connection."""
        self._width.pushed_back(asyncio.get_running_loop().time(), running=self._limiter.held)

    def changed(self) -> None:
        """Decide again, once for all that changes in this turn of the loop: the lowest layer may join last."""
        if self._jobs and self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        works = [job.work(number) for number, job in self._jobs.items()]
        # Connections of blobs that have left are still ending: their slots are not free yet.
        cap = self._limiter.limit - (self._limiter.held - sum(work.running for work in works))
        begun = assign(
            works,
            width=self._width.within(self._limiter.limit),
            cap=cap,
            range_size=self._settings.range_size,
            small=self._settings.small_blob,
            starts=self._starts,
        )
        for start in begun:
            if not self._limiter.take():
                raise AssertionError("the pool alone takes slots of its limiter")
            self._starts += 1
            self._jobs[start.number].begin(start.span, self._starts)
