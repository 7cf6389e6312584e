"""What the agent does about its disks: who has to wait for room, when all give way, and what the status says of it.

Looks every so often, and lets disk_pressure.py judge. The pulls themselves are admitted and stopped by pulling/rooms.py;
here is only what lies between two attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from imageprepull.agent.backoff import Backoff, Failure, Pace, after_failure
from imageprepull.agent.disk_pressure import Margins, Short, judge_pressure
from imageprepull.agent.image import Gate
from imageprepull.pulling.rooms import FileSystem, Rooms
from imageprepull.pulling.space import NoRoom
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import DesiredImage, Disk
from imageprepull.resources.reasons import DISK_FULL, NODE_DISK_PRESSURE

logger = structlog.get_logger(__name__)
_NEVER = 1 << 30


class Unguarded:
    """A node without disks to look at: nobody waits for room, and no pin yields."""

    async def run(self, changed: Callable[[], None], wake: Callable[[], None]) -> None:
        """As `DiskGuard.run`."""

    def gate(self, lack: NoRoom | None) -> Gate | None:
        """As `DiskGuard.gate`."""

    def effective(self, desired: Sequence[DesiredImage]) -> Sequence[DesiredImage]:
        """As `DiskGuard.effective`."""
        return desired

    def report(self, pins_left: int, unfinished_left: int | None) -> Disk | None:
        """As `DiskGuard.report`."""


UNGUARDED = Unguarded()


class DiskGuard(Unguarded):
    """The disks of one node's runtime. `run` looks until cancelled; before its first look nothing is gated."""

    def __init__(self, rooms: Rooms, margins: Margins, interval: float) -> None:
        """`interval`: seconds between two looks. The kubelet takes one every 10 s."""
        self.short = Short()
        self._rooms = rooms
        self._margins = margins
        self._interval = interval
        self._seen: list[FileSystem] = []
        self._held_back = False

    async def run(self, changed: Callable[[], None], wake: Callable[[], None]) -> None:
        """Look again and again. `changed`: pressure began or ended; `wake`: somebody who waits may have room now."""
        while True:
            await self.look(changed, wake)
            await asyncio.sleep(self._interval)

    async def look(self, changed: Callable[[], None], wake: Callable[[], None]) -> None:
        """One look, and what follows from it."""
        self._seen = await self._rooms.look()
        rooms = {one.folder: one.room for one in self._seen}
        was, short = self.short, judge_pressure(self.short, rooms, self._rooms.thresholds, self._margins)
        # The figures of its beginning stand for as long as it is the same, or each look would be news.
        if short.scarce != was.scarce:
            self.short = short
        if short.pressure != was.pressure:
            if short.pressure:
                logger.warning(
                    "disk pressure: pins yield, unfinished pulls give back what they hold, nothing is pulled",
                    why=short.message,
                )
            else:
                logger.info("no disk pressure any more: pins are set again")
            changed()
        elif self._held_back or short.pressure:
            # Who still waits says so again in the step that follows.
            self._held_back = False
            wake()

    def gate(self, lack: NoRoom | None) -> Gate | None:
        """Why an image may not be pulled now; `lack` is what its last attempt had no room for."""
        gate = None
        if self.short.pressure:
            gate = Gate(NODE_DISK_PRESSURE, self.short.message)
        elif lack is not None and self._rooms.lacks(
            self._seen, lack.need, lack.min_free, self._margins.spare
        ):
            gate = Gate(lack.reason, lack.message)
        self._held_back = self._held_back or gate is not None
        return gate

    def effective(self, desired: Sequence[DesiredImage]) -> Sequence[DesiredImage]:
        """What is wanted of the node as its disks are: under pressure without pins."""
        if not self.short.pressure:
            return desired
        return [msgspec.structs.replace(image, pin=False) for image in desired]

    def report(self, pins_left: int, unfinished_left: int | None) -> Disk | None:
        """For the status; None before the first look.

        `pins_left`: images that may carry a pin of ours still. `unfinished_left`: pulls that hold something still, None
        for an unknown number.
        """
        message = self.short.message
        if self.short.pressure and pins_left:
            message += f"; pins are being taken away, {pins_left} may be left"
        if self.short.pressure and unfinished_left is None:
            message += "; unfinished pulls are giving back what they hold"
        elif self.short.pressure and unfinished_left:
            message += f"; pulls still at work: {unfinished_left}"
        for seen in self._seen:
            if "snapshots" in seen.parts:
                return Disk(
                    capacity=seen.room.capacity,
                    available=max(0, seen.room.free),
                    pressure=self.short.pressure,
                    pins_yielded=self.short.pressure and not pins_left,
                    message=bounds.cut(message, bounds.MESSAGE),
                )
        return None


def waiting(previous: Backoff | None, failure: Failure, pace: Pace, uniform: float) -> Backoff:
    """After an attempt that had no room: never final, and no guess when to try again, for room will tell.

    Where a full disk said so itself there may be a limit that nobody sees (a quota): then time has to pass as well.
    """
    if failure.reason == DISK_FULL:
        return after_failure(previous, failure, limit=_NEVER, pace=pace, uniform=uniform)
    return Backoff(previous.attempts if previous else 0, False, failure.reason, failure.message, 0)
