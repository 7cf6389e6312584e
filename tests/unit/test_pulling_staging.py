"""What the fast path decides and does without a runtime: folders from mounts, the exchange, turns at unpacking."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import AsyncExitStack
from pathlib import Path, PurePosixPath

import pytest

from imageprepull.oci.descriptor import DOCKER_LAYER, OCI_LAYER, Descriptor
from imageprepull.pulling import exchange as exchange_module
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.exchange import exchange
from imageprepull.pulling.extraction import ExtractionPath, required
from imageprepull.pulling.layer_folders import LayerFolders, Roots, UnknownMounts, layer_folders
from imageprepull.pulling.plan import Memory, Work, next_to_unpack
from imageprepull.pulling.slots import Slots, Turn
from imageprepull.pulling.staging import extract_job
from imageprepull.runtime.mounts import Mount
from imageprepull.unpacking.frontier import Frontier

ROOTS = Roots(PurePosixPath("/var/lib/containerd/overlay"), Path("/host/overlay"))
SNAPSHOTS = "/var/lib/containerd/overlay/snapshots"


def overlay(*options: str) -> list[Mount]:
    return [Mount("overlay", "overlay", options)]


def test_a_snapshot_without_a_parent_is_a_bind_mount() -> None:
    mounts = [Mount("bind", f"{SNAPSHOTS}/7/fs", ("rw", "rbind"))]
    assert layer_folders(mounts, ROOTS) == LayerFolders(Path("/host/overlay/snapshots/7/fs"), ROOTS)


def test_one_with_parents_is_an_overlay_with_the_nearest_first() -> None:
    mounts = overlay(
        "index=off",
        f"workdir={SNAPSHOTS}/9/work",
        f"upperdir={SNAPSHOTS}/9/fs",
        f"lowerdir={SNAPSHOTS}/8/fs:{SNAPSHOTS}/7/fs",
    )
    found = layer_folders(mounts, ROOTS)
    assert found.upper == Path("/host/overlay/snapshots/9/fs")
    assert found.lowers() == [Path("/host/overlay/snapshots/8/fs"), Path("/host/overlay/snapshots/7/fs")]
    with pytest.raises(UnknownMounts):
        layer_folders(overlay(UPPER, "lowerdir=/elsewhere/fs"), ROOTS).lowers()


UPPER, LOWER = f"upperdir={SNAPSHOTS}/9/fs", f"lowerdir={SNAPSHOTS}/8/fs"


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [Mount("btrfs", "/dev/sda", ())],
        [Mount("bind", f"{SNAPSHOTS}/7/fs", ("ro", "rbind"))],
        [Mount("bind", "/elsewhere/7/fs", ("rw",))],
        [Mount("bind", f"{SNAPSHOTS}/../../../../etc", ("rw",))],
        [Mount("bind", "/var/lib/containerd/overlay", ("rw",))],
        overlay(UPPER),
        overlay(UPPER, UPPER, LOWER),
        overlay(UPPER, LOWER, "userxattr"),
        overlay(UPPER, LOWER, "uidmap=0:1000:1"),
        overlay(UPPER, "lowerdir=a\\:b"),
    ],
    ids=str,
)
def test_other_mounts_are_not_guessed_at(mounts: list[Mount]) -> None:
    with pytest.raises(UnknownMounts):
        layer_folders(mounts, ROOTS)


@pytest.fixture
def snapshots(tmp_path: Path) -> tuple[Path, Path]:
    staged, prepared = tmp_path / "1" / "fs", tmp_path / "2" / "fs"
    for folder in (staged, prepared):
        folder.mkdir(parents=True)
    staged.chmod(0o700)
    prepared.chmod(0o755)
    (staged / "file").write_text("the layer")
    os.utime(staged, ns=(5, 5))
    return staged, prepared


@pytest.mark.parametrize("supported", [True, False])
def test_the_tree_is_where_the_runtime_expects_it_with_the_roots_mode_of_the_runtime(
    snapshots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:
        monkeypatch.setattr(exchange_module, "_renameat2", lambda *_: errno.EINVAL)
    staged, prepared = snapshots
    exchange(staged, prepared)
    assert [path.name for path in prepared.iterdir()] == ["file"]
    assert list(staged.iterdir()) == []
    assert prepared.stat().st_mode & 0o7777 == 0o755
    assert prepared.stat().st_mtime_ns == 5


def test_an_exchange_that_fails_moves_nothing(
    snapshots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_renameat2", lambda *_: errno.EXDEV)
    staged, prepared = snapshots
    with pytest.raises(OSError, match="cross-device"):
        exchange(staged, prepared)
    assert (staged / "file").exists()
    assert list(prepared.iterdir()) == []


def test_a_link_in_place_of_a_folder_is_refused(snapshots: tuple[Path, Path], tmp_path: Path) -> None:
    staged, prepared = snapshots
    prepared.rmdir()
    prepared.symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"."):
        exchange(staged, prepared)
    assert (staged / "file").exists()


def test_only_ocis_plain_tar_is_taken_as_it_is() -> None:
    def job(media_type: str, position: int = 1) -> tuple[bool, bool]:
        made = extract_job(Descriptor(media_type, "sha256:0", 5), position, Memory())
        return made.detect, made.bottom

    assert job(OCI_LAYER) == (False, False)
    assert job(OCI_LAYER, 0) == (False, True)
    assert [job(kind)[0] for kind in (f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd", DOCKER_LAYER)] == [True] * 3


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([7], 0),
        ([10, 10, 10, 10], 0),
        ([10, 10, 10, 500], 3),
        ([10, 500, 10, 500], 0),
        ([1] * 99 + [100], 99),
        ([1] * 100 + [60], 0),
    ],
)
def test_the_lowest_layer_is_next_unless_one_would_be_alone_in_the_end(sizes: list[int], chosen: int) -> None:
    assert next_to_unpack([Work(number, size) for number, size in enumerate(sizes)], 2) == chosen


def test_lowest_means_in_the_chain_and_not_in_the_queue() -> None:
    assert next_to_unpack([Work(5, 10), Work(2, 10), Work(4, 10)], 1) == 1


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_are_taken_in_order_and_only_so_many_at_once() -> None:
    slots, order, release = Slots(2, spare=0), list[int](), asyncio.Event()

    async def work(number: int) -> None:
        async with slots.turn(Work(number, 10)):
            order.append(number)
            await release.wait()

    async with asyncio.TaskGroup() as group:
        for number in (0, 4, 3, 1, 2):
            group.create_task(work(number))
        await settled()
        assert len(order) == 2
        release.set()
    assert order[2:] == sorted(order[2:])
    assert repr(slots) == "<Slots 0 of 2 taken, 0 alive, 0 waiting>"


async def test_who_waits_for_bytes_lets_another_work_and_is_next_when_they_come() -> None:
    slots = Slots(1, spare=1)
    slow = Frontier(100)
    async with AsyncExitStack() as stack:
        first: Turn = await stack.enter_async_context(slots.turn(Work(0, 100)))
        reading = asyncio.create_task(first.follow(slow).beyond(0))
        await settled()
        assert repr(slots).startswith("<Slots 0 of 1 taken, 1 alive")
        async with slots.turn(Work(1, 10)):
            slow.advance(50)
            await settled()
            assert not reading.done(), "its turn is another's"
            third = asyncio.create_task(stack.enter_async_context(slots.turn(Work(2, 10))))
            await settled()
        assert await reading == 50
        assert first.taken
        await settled()
        assert not third.done(), "who began earlier comes first"
        assert await first.follow(slow).beyond(10) == 50, "bytes that are there cost no turn"
        again = asyncio.create_task(first.follow(slow).beyond(50))
        await third
        again.cancel()
        await asyncio.wait([again])
    assert repr(slots) == "<Slots 0 of 1 taken, 0 alive, 0 waiting>"


async def test_more_than_spare_workers_never_wait_with_their_memory() -> None:
    slots = Slots(1, spare=1)
    async with AsyncExitStack() as stack:
        for number in range(2):
            turn = await stack.enter_async_context(slots.turn(Work(number, 10)))
            stack.push_async_callback(
                asyncio.wait, [reading := asyncio.create_task(turn.follow(Frontier(9)).beyond(0))]
            )
            stack.callback(reading.cancel)
            await settled()
        third = asyncio.create_task(stack.enter_async_context(slots.turn(Work(2, 10))))
        await settled()
        assert not third.done()
        third.cancel()
        await asyncio.wait([third])
    assert repr(slots) == "<Slots 0 of 1 taken, 0 alive, 0 waiting>"


async def test_a_frontier_that_fails_does_so_for_its_follower() -> None:
    slots, frontier = Slots(1, spare=0), Frontier(10)
    async with slots.turn(Work(0, 10)) as turn:
        reading = asyncio.create_task(turn.follow(frontier).beyond(0))
        await settled()
        frontier.fail(PullError("Gone", "gone"))
        with pytest.raises(PullError, match="gone"):
            await reading
    assert repr(slots) == "<Slots 0 of 1 taken, 0 alive, 0 waiting>"


async def test_cancelled_waiters_take_nothing_with_them() -> None:
    slots = Slots(1, spare=0)

    async def work(number: int) -> None:
        async with slots.turn(Work(number, 1)):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(work(number)) for number in range(3)]
    await settled()
    # Admission of the second and its cancellation fall together.
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[1].cancel()
    await settled()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert repr(slots) == "<Slots 0 of 1 taken, 0 alive, 0 waiting>"


def test_a_path_that_is_none_says_what_to_do() -> None:
    assert required(ExtractionPath("portable", "asked for")).path == "portable"
    with pytest.raises(PullError, match="ask for auto"):
        required(ExtractionPath("none", "no workers"))
