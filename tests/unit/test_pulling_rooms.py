"""Who may begin and who must stop, with a FAKE look at the disks: nobody can fill a real one to a given byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageprepull.pulling.errors import as_pull_error
from imageprepull.pulling.need import Need
from imageprepull.pulling.rooms import Expected, FileSystem, Places, Rooms, largest, look_at
from imageprepull.pulling.space import NoRoom, Room, Thresholds
from imageprepull.resources.free_space import Amount

GB = 10**9


class Disks:
    """Two file systems: snapshots and content on one, the spool on another, or all on one."""

    def __init__(self, *, one: bool = True) -> None:
        self.free = {"/run": 100 * GB, "/spool": 100 * GB}
        self.one = one
        self.looks = asyncio.Semaphore(0)
        self.loop = asyncio.get_running_loop()

    def look(self, _: Places) -> dict[int, FileSystem]:
        self.loop.call_soon_threadsafe(self.looks.release)
        parts = {"snapshots", "content"} | ({"spool"} if self.one else set())
        found = {1: FileSystem("/run", Room(100 * GB, self.free["/run"]), parts)}
        if not self.one:
            found[2] = FileSystem("/spool", Room(100 * GB, self.free["/spool"]), {"spool"})
        return found

    async def looked(self, count: int = 2) -> None:
        """Until so many further looks were taken and judged."""
        while not self.looks.locked():
            await self.looks.acquire()
        async with asyncio.timeout(30):
            for _ in range(count):
                await self.looks.acquire()


@asynccontextmanager
async def followed(disks: Disks) -> AsyncIterator[Rooms]:
    rooms = Rooms(Places(Path("/spool"), Path("/run")), Thresholds(), 0.005, disks.look)
    following = asyncio.create_task(rooms.follow())
    try:
        yield rooms
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert repr(rooms) == "<Rooms with 0 at work>"


class Pull:
    """A pull that writes nothing and ends when it is told to."""

    def __init__(self, rooms: Rooms, need: Need, min_free: Amount | None = None) -> None:
        self.left = self.whole = need
        self.begun, self.ending = asyncio.Event(), asyncio.Event()
        self.cleaned = False
        self.task = asyncio.create_task(rooms.guard(self.expect, min_free, self.work))

    def expect(self) -> Expected:
        return Expected(self.left, self.whole)

    async def work(self) -> None:
        self.begun.set()
        try:
            await self.ending.wait()
        finally:
            self.cleaned = True

    async def refusal(self) -> NoRoom:
        await asyncio.wait([self.task], timeout=10)
        failure = self.task.exception()
        assert failure is not None
        error = as_pull_error(failure)
        assert isinstance(error, NoRoom)
        return error

    async def end(self) -> None:
        self.ending.set()
        await self.task


async def test_what_does_not_fit_is_not_begun_and_the_figures_say_why() -> None:
    disks = Disks()
    disks.free["/run"] = 50 * GB
    async with followed(disks) as rooms:
        pull = Pull(rooms, Need(10 * GB, 0, 21 * GB))
        error = await pull.refusal()
    assert (error.reason, error.permanent, pull.begun.is_set()) == ("InsufficientDisk", False, False)
    assert error.message == (
        "not begun: 31 GB needed in /run, 50 GB free, and 20 GB of 100 GB must stay free"
    )
    assert error.need.total == 31 * GB


async def test_two_that_fit_one_by_one_do_not_get_the_same_room() -> None:
    disks = Disks()
    async with followed(disks) as rooms:
        first = Pull(rooms, Need(snapshots=50 * GB))
        await first.begun.wait()
        second = Pull(rooms, Need(snapshots=50 * GB))
        assert "of which other pulls will take 50 GB" in str(await second.refusal())
        await first.end()
        third = Pull(rooms, Need(snapshots=50 * GB))
        await third.begun.wait()
        await third.end()


async def test_each_file_system_is_asked_for_what_is_written_there() -> None:
    disks = Disks(one=False)
    disks.free |= {"/spool": 25 * GB, "/run": 90 * GB}
    async with followed(disks) as rooms:
        fits = Pull(rooms, Need(spool=5 * GB, snapshots=70 * GB))
        await fits.begun.wait()
        await fits.end()
        assert "6 GB needed in /spool, 25 GB free" in str(await Pull(rooms, Need(6 * GB, 0, 1)).refusal())


async def test_a_pull_stops_before_the_disk_is_full_and_has_cleaned_up_when_it_says_so() -> None:
    disks = Disks()
    async with followed(disks) as rooms:
        pull = Pull(rooms, Need(snapshots=10 * GB))
        await disks.looked()
        assert not pull.task.done()
        disks.free["/run"] = 19 * GB
        error = await pull.refusal()
    assert (error.reason, pull.cleaned) == ("InsufficientDisk", True)
    assert error.message.startswith("stopped before the disk was full: 10 GB needed in /run, 19 GB free")


async def test_the_newest_stops_when_an_older_one_turns_out_larger() -> None:
    disks = Disks()
    async with followed(disks) as rooms:
        old = Pull(rooms, Need(snapshots=30 * GB))
        await old.begun.wait()
        new = Pull(rooms, Need(snapshots=30 * GB))
        await new.begun.wait()
        await disks.looked()
        assert not new.task.done()
        old.left = old.whole = Need(snapshots=60 * GB)
        assert "of which other pulls will take 60 GB" in str(await new.refusal())
        assert not old.task.done()
        await old.end()


async def test_the_work_s_own_failure_and_a_cancellation_end_the_watch() -> None:
    disks = Disks()
    async with followed(disks) as rooms:

        async def fail() -> None:
            raise OSError(28, "no space left")

        with pytest.raises(ExceptionGroup):
            await rooms.guard(lambda: Expected(Need(), Need()), None, fail)
        pull = Pull(rooms, Need())
        await pull.begun.wait()
        pull.task.cancel()
        await asyncio.wait([pull.task])
        assert (pull.task.cancelled(), pull.cleaned) == (True, True)


async def test_its_own_wish_counts_for_each_pull() -> None:
    disks = Disks()
    async with followed(disks) as rooms:
        assert "60 GB of 100 GB must stay free" in str(
            await Pull(rooms, Need(snapshots=50 * GB), Amount(percent=60)).refusal()
        )


def test_folders_on_one_file_system_are_one_and_missing_ones_are_their_parents(tmp_path: Path) -> None:
    found = list(look_at(Places(tmp_path / "a" / "spool", tmp_path, tmp_path / "content")).values())
    assert [one.parts for one in found] == [{"snapshots", "spool", "content"}]
    assert 0 < found[0].room.free <= found[0].room.capacity
    apart = look_at(Places(Path("/dev/shm/spool"), tmp_path)).values()
    assert sorted(sorted(one.parts) for one in apart) == [["content", "snapshots"], ["spool"]]


def test_the_largest_few() -> None:
    assert (largest([3, 9, 5], 2), largest([1], 2), largest([], 2)) == (14, 1, 0)
