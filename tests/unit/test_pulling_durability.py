"""Whose layers are believed, and that no failed write is overlooked: the kernel tells of each only once."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from imageprepull.pulling import durability
from imageprepull.pulling.durability import (
    UNKNOWN_BOOT,
    WriteBack,
    believed,
    make_durable,
    settle_losses,
)
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.syncing import Syncing
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import TimedOut
from imageprepull.runtime.snapshots import SnapshotInfo, SnapshotKind

BOOT = "this-boot"
EIO = OSError(errno.EIO, "Input/output error")


@dataclass
class Runtime:
    """Its snapshots' labels, and nothing else. `failures` are raised by the next changes."""

    marks: dict[str, str]
    failures: deque[Exception] = field(default_factory=deque)

    @property
    def snapshots(self) -> Runtime:
        return self

    async def list(self, _: str, filters: Sequence[str]) -> Sequence[SnapshotInfo]:
        await asyncio.sleep(0)
        value = filters[0].partition("==")[2].strip('"')
        return [
            SnapshotInfo(name, "", SnapshotKind.COMMITTED, {UNSYNCED: mark})
            for name, mark in self.marks.items()
            if value in {"", mark}
        ]

    async def update_labels(self, _: str, name: str, labels: dict[str, str]) -> None:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.popleft()
        if mark := labels[UNSYNCED]:
            self.marks[name] = mark
        else:
            self.marks.pop(name, None)

    async def sync(self, writes: WriteBack, *chain_ids: str) -> None:
        await make_durable(cast("Containerd", self), "overlayfs", writes, BOOT, chain_ids)


@dataclass
class Disk:
    """Answers the next syncs so, and with success when there is no more to say."""

    answers: list[OSError | None] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def sync(self, descriptor: int) -> None:
        self.asked.append(descriptor)
        answer = self.answers.pop(0) if self.answers else None
        assert self.goes_on.wait(10)
        if answer is not None:
            raise answer


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    found.goes_on.set()
    monkeypatch.setattr(durability, "sync_file_system", found.sync)
    return found


@pytest.fixture
def writes(tmp_path: Path) -> Iterator[WriteBack]:
    found = WriteBack(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("mark", "boot", "expected"),
    [
        (None, BOOT, True),
        (BOOT, BOOT, True),
        ("another", BOOT, False),
        (f"{BOOT}-lost", BOOT, False),
        (None, UNKNOWN_BOOT, True),
        ("another", UNKNOWN_BOOT, True),
        (UNKNOWN_BOOT, UNKNOWN_BOOT, True),
        (f"{UNKNOWN_BOOT}-lost", UNKNOWN_BOOT, False),
        ("another-lost", UNKNOWN_BOOT, False),
        (UNKNOWN_BOOT, BOOT, False),
    ],
)
def test_what_is_believed(mark: str | None, boot: str, expected: bool) -> None:
    assert believed(mark, boot) is expected


async def test_labels_go_when_all_is_written_and_only_ours(disk: Disk, writes: WriteBack) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT, "c": "another", "d": BOOT})
    await runtime.sync(writes, "a", "b", "x")
    assert runtime.marks == {"c": "another", "d": BOOT}
    await runtime.sync(writes, "a", "b")
    assert len(disk.asked) == 1, "nothing was left to sync"


async def test_one_descriptor_is_told_from_the_first_byte_to_the_last(disk: Disk, writes: WriteBack) -> None:
    writes.watch()
    first = writes._descriptor
    runtime = Runtime({"a": BOOT})
    await runtime.sync(writes, "a")
    writes.watch()
    runtime.marks["b"] = BOOT
    await runtime.sync(writes, "b")
    assert disk.asked == [first, first]


async def test_a_failure_concerns_all_that_wait(disk: Disk, writes: WriteBack) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT, "c": "another"})
    disk.answers = [EIO]
    begun = writes.watch()
    with pytest.raises(PullError, match="cannot sync") as caught:
        await runtime.sync(writes, "a")
    assert caught.value.reason == "DiskError"
    assert runtime.marks == {"a": f"{BOOT}-lost", "b": f"{BOOT}-lost", "c": "another"}
    assert writes.losses > begun
    assert writes._descriptor == -1, "what fails later of the same writes does not concern the next pull"
    with pytest.raises(PullError) as caught:
        await runtime.sync(writes, "b")
    assert caught.value.reason == "DiskError", "whose image it is must not take it for synced"


async def test_of_two_syncs_at_once_one_is_told_for_both(disk: Disk, writes: WriteBack) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT})
    disk.answers = [EIO]
    ended = await asyncio.gather(runtime.sync(writes, "a"), runtime.sync(writes, "b"), return_exceptions=True)
    assert [type(one) for one in ended] == [PullError, PullError]
    assert set(runtime.marks.values()) == {f"{BOOT}-lost"}


@pytest.mark.parametrize("when", ["while it syncs", "while it says whose"])
async def test_a_failure_is_not_forgotten_with_who_was_told(disk: Disk, writes: WriteBack, when: str) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT})
    disk.answers = [EIO]
    if when == "while it syncs":
        disk.goes_on.clear()
        first = asyncio.create_task(runtime.sync(writes, "a"))
        while not disk.asked:  # noqa: ASYNC110 - a thread.
            await asyncio.sleep(0.001)
        first.cancel()
        for _ in range(9):
            await asyncio.sleep(0)
        assert not first.done(), "or the thread that is told has nobody to tell"
        disk.goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
    else:
        runtime.failures.append(TimedOut("label a snapshot", "no answer"))
        with pytest.raises(TimedOut):
            await runtime.sync(writes, "a")
    assert runtime.marks == {"a": BOOT, "b": BOOT}
    with pytest.raises(PullError) as caught:
        await runtime.sync(writes, "b")
    assert caught.value.reason == "DiskError"
    assert set(runtime.marks.values()) == {f"{BOOT}-lost"}


async def test_after_a_failed_pull_the_account_is_settled(disk: Disk, writes: WriteBack) -> None:
    runtime = Runtime({"a": BOOT, "b": "another"})
    begun = writes.watch()
    await settle_losses(cast("Containerd", runtime), "overlayfs", writes, BOOT)
    assert (runtime.marks["a"], writes.watch()) == (BOOT, begun), "nothing was lost"
    disk.answers = [EIO]
    await settle_losses(cast("Containerd", runtime), "overlayfs", writes, BOOT)
    assert runtime.marks == {"a": f"{BOOT}-lost", "b": "another"}
    assert writes._descriptor == -1
    assert writes.watch() > begun


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    writes = WriteBack(tmp_path / "nowhere")
    assert writes.watch() == 0
    runtime = Runtime({"a": BOOT})
    with pytest.raises(PullError, match="nowhere") as caught:
        await runtime.sync(writes, "a")
    assert caught.value.reason == "CannotSync"
    assert runtime.marks == {"a": BOOT}
    await runtime.sync(writes)


@pytest.fixture
def settings() -> PullSettings:
    return replace(PullSettings(), sync_retry=0.001, sync_retry_cap=0.002, stop_patience=1)


def syncing_of(runtime: Runtime, writes: WriteBack, settings: PullSettings) -> Syncing:
    return Syncing(cast("Any", runtime), writes, BOOT, settings)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - labels tell nobody.
            await asyncio.sleep(0.001)


async def test_what_was_left_is_tried_until_it_is_done(
    disk: Disk, writes: WriteBack, settings: PullSettings
) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT, "others": BOOT})
    runtime.failures.extend(TimedOut("label a snapshot", "no answer") for _ in range(3))
    syncing = syncing_of(runtime, writes, settings)
    running = asyncio.create_task(syncing.run())
    syncing.begun("overlayfs", ["a", "b"])
    syncing.again()
    await until(lambda: not {"a", "b"} & runtime.marks.keys())
    running.cancel()
    await asyncio.wait([running])
    await syncing.finish()
    assert runtime.marks == {"others": BOOT}


async def test_what_the_disk_has_lost_is_not_tried_again(
    disk: Disk, writes: WriteBack, settings: PullSettings
) -> None:
    runtime = Runtime({"a": BOOT})
    disk.answers = [EIO]
    syncing = syncing_of(runtime, writes, settings)
    syncing.begun("overlayfs", ["a"])
    await syncing.finish()
    await syncing.finish()
    assert runtime.marks == {"a": f"{BOOT}-lost"}
    assert len(disk.asked) == 1
    assert not any(syncing._left.values())


async def test_who_ends_tries_once_and_only_what_is_left(
    disk: Disk, writes: WriteBack, settings: PullSettings
) -> None:
    runtime = Runtime({"a": BOOT, "b": BOOT})
    syncing = syncing_of(runtime, writes, settings)
    await syncing.finish()
    syncing.begun("overlayfs", ["a", "b"])
    syncing.synced("overlayfs", ["b"])
    await syncing.finish()
    assert runtime.marks == {"b": BOOT}
