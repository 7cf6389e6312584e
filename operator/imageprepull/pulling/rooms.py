"""The file systems that pulls write to: what is free there, who may begin, and who must stop.

Between space.py, whose rules are pure, and the pulls of a process, which each run inside `Rooms.guard`. Space is looked
at when a pull begins and every so often while one runs, never remembered.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from imageprepull.pulling.need import Need
from imageprepull.pulling.space import (
    NoRoom,
    Open,
    Room,
    Shortage,
    Thresholds,
    floor_of,
    shortage,
    to_stop,
)
from imageprepull.pulling.threads import in_thread
from imageprepull.resources.free_space import Amount
from imageprepull.resources.reasons import INSUFFICIENT_DISK

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that a pull fills, by the part of a `Need`; they may be on one file system or on several."""

    spool: Path
    snapshots: Path
    content: Path | None = None

    def parts(self) -> list[tuple[str, Path]]:
        """Where the runtime does not tell its content store's folder, it is taken to be with the snapshots."""
        return [
            ("snapshots", self.snapshots),
            ("spool", self.spool),
            ("content", self.content or self.snapshots),
        ]


@dataclass(slots=True)
class FileSystem:
    """One of them, as just seen: `parts` are those of a `Need` that are written here."""

    folder: str
    room: Room
    parts: set[str] = field(default_factory=set)

    def share(self, need: Need) -> int:
        """Bytes of a need that come here."""
        return sum(getattr(need, part) for part in self.parts)


def look_at(places: Places) -> dict[int, FileSystem]:
    """The file systems by device number; folders that are not there yet count as their parents. Blocks.

    A folder that cannot be seen from here is left out: nothing can be said of it.
    """
    found: dict[int, FileSystem] = {}
    for part, folder in places.parts():
        try:
            seen = next((one for one in (folder, *folder.parents) if one.exists()), None)
            if seen is None:
                continue
            device, space = seen.stat().st_dev, os.statvfs(seen)
        except OSError as error:
            log.warning("cannot see how much is free", folder=str(folder), error=error.strerror)
            continue
        room = Room(
            space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize, space.f_files, space.f_favail
        )
        found.setdefault(device, FileSystem(str(folder), room)).parts.add(part)
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """What a pull will still write, and what it would have to write if it began anew."""

    left: Need
    whole: Need


@dataclass(slots=True, eq=False)
class _Claim:
    expect: Callable[[], Expected]
    min_free: Amount | None
    stopped: asyncio.Future[NoRoom]

    def stop(self, error: NoRoom) -> None:
        if not self.stopped.done():
            self.stopped.set_result(error)

    async def until_stopped(self) -> None:
        raise await self.stopped


class Rooms:
    """The disks of one runtime, for all pulls of a process. `follow` watches while it runs.

    Args:
        places: where pulls write.
        thresholds: the kubelet's, or `NO_THRESHOLDS`.
        interval: seconds between two looks while pulls run.
        look: how to look, for tests that cannot fill a disk to the byte.
    """

    def __init__(
        self,
        places: Places,
        thresholds: Thresholds,
        interval: float,
        look: Callable[[Places], dict[int, FileSystem]] = look_at,
    ) -> None:
        self.thresholds = thresholds
        self._places = places
        self._interval = interval
        self._look = look
        self._claims: list[_Claim] = []
        self._before: dict[int, Room] = {}

    def __repr__(self) -> str:
        return f"<Rooms with {len(self._claims)} at work>"

    async def look(self) -> list[FileSystem]:
        """What is free now."""
        return list((await in_thread(lambda: self._look(self._places))).values())

    def lacks(
        self, seen: Iterable[FileSystem], need: Need, min_free: Amount | None, spare: float = 0
    ) -> Shortage | None:
        """Where there is no room for `need` beside the pulls at work. `spare`: points that are wanted on top."""
        for disk in seen:
            promised = sum(disk.share(claim.expect().left) for claim in self._claims)
            found = shortage(
                disk.folder,
                disk.room,
                floor_of(disk.room, self.thresholds, min_free),
                disk.share(need),
                promised,
                round(disk.room.capacity * spare / 100),
            )
            if found is not None:
                return found
        return None

    async def check(self, need: Need, min_free: Amount | None) -> None:
        """Whether there is room now, for what is written at once.

        Raises:
            NoRoom: with the figures.
        """
        lack = self.lacks(await self.look(), need, min_free)
        if lack is not None:
            raise NoRoom(INSUFFICIENT_DISK, f"not enough room: {lack}", need, min_free)

    async def guard(
        self, expect: Callable[[], Expected], min_free: Amount | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do `work` if there is room for it, and as long as there is.

        Raises:
            NoRoom: not begun, or stopped and cleaned up.
            BaseExceptionGroup: with that when it was stopped, or with what the work raised.
        """
        seen = await self.look()
        # No await between the decision and the claim: two that begin at once must not both get the same room.
        first = expect()
        lack = self.lacks(seen, first.left, min_free)
        if lack is not None:
            raise NoRoom(INSUFFICIENT_DISK, f"not begun: {lack}", first.whole, min_free)
        claim = _Claim(expect, min_free, asyncio.get_running_loop().create_future())
        self._claims.append(claim)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(claim.until_stopped(), name="room")
                await work()
                watching.cancel()
        finally:
            self._claims.remove(claim)

    async def follow(self) -> None:
        """Stop pulls before a disk is too full; until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            if self._claims:
                self._stop(await in_thread(lambda: self._look(self._places)))
            else:
                self._before = {}

    def _stop(self, seen: dict[int, FileSystem]) -> None:
        claims = list(self._claims)
        expected = [claim.expect() for claim in claims]
        for device, disk in seen.items():
            opened = [
                Open(
                    disk.share(what.left),
                    disk.share(what.whole),
                    floor_of(disk.room, self.thresholds, claim.min_free),
                )
                for claim, what in zip(claims, expected, strict=True)
            ]
            for index, lack in to_stop(disk.room, self._before.get(device), opened, self.thresholds).items():
                message = f"stopped before the disk was full: {_in(lack, disk.folder)}"
                claims[index].stop(
                    NoRoom(INSUFFICIENT_DISK, message, expected[index].whole, claims[index].min_free)
                )
        self._before = {device: disk.room for device, disk in seen.items()}


def _in(lack: Shortage, folder: str) -> Shortage:
    return Shortage(folder, lack.need, lack.free, lack.promised, lack.floor, lack.capacity)


def largest(sizes: Sequence[int], count: int) -> int:
    """The sum of the `count` largest."""
    return sum(sorted(sizes, reverse=True)[:count])
