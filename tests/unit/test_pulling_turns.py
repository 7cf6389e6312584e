"""Who may unpack beside whom, and what a worker is asked: cores that are idle, zstd windows, threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import cast

import pytest
import zstandard

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.pulling.chain import Chain
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.growing import Growing
from imageprepull.pulling.layer_folders import Roots
from imageprepull.pulling.plan import (
    ORDINARY_REMEMBERED,
    ORDINARY_WINDOW,
    SHARED_MEMORY,
    Memory,
    Work,
    memory_fits,
)
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.slots import Slots
from imageprepull.pulling.staging import Staging
from imageprepull.pulling.urgency import Urgency
from imageprepull.runtime.mounts import Mount
from imageprepull.unpacking.frames import WIDER_WINDOW, first_window
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import (
    MORE_DIRECTORIES,
    MOST_REMEMBERED,
    MOST_WINDOW,
    Extracted,
    ExtractJob,
    Refused,
)
from imageprepull.unpacking.workers import Workers

MIB = 1 << 20
DIFF_ID = "sha256:d"


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def entered(
    stack: AsyncExitStack, slots: Slots, work: Work, *, polite: bool = False
) -> asyncio.Task[object]:
    """Asks for a turn; cancelled at the end of the stack if it never came."""
    task: asyncio.Task[object] = asyncio.create_task(
        stack.enter_async_context(slots.turn(work, polite=lambda: polite))
    )
    stack.callback(task.cancel)
    await settled()
    return task


async def test_it_is_crowded_when_no_core_is_idle_and_somebody_waits() -> None:
    slots = Slots(1, spare=0)
    seen = [slots.crowded]
    async with AsyncExitStack() as stack:
        await entered(stack, slots, Work(0, 10))
        seen.append(slots.crowded)
        second = await entered(stack, slots, Work(1, 10))
        seen.append(slots.crowded)
        second.cancel()
        await asyncio.wait([second])
        seen.append(slots.crowded)
    assert seen == [False, False, True, False]


async def test_it_is_not_crowded_while_politeness_leaves_a_core_idle() -> None:
    slots = Slots(2, spare=0)
    slots.polite = 1
    async with AsyncExitStack() as stack:
        await entered(stack, slots, Work(0, 10), polite=True)
        assert not (await entered(stack, slots, Work(1, 10), polite=True)).done()
        assert not slots.crowded
        await entered(stack, slots, Work(2, 10))
        assert slots.crowded


async def test_it_is_not_crowded_while_all_who_may_be_alive_wait_for_bytes() -> None:
    slots = Slots(2, spare=1)
    async with AsyncExitStack() as stack:
        for number in range(3):
            turn = await stack.enter_async_context(slots.turn(Work(number, 10)))
            reading = asyncio.create_task(turn.follow(Frontier(9)).beyond(0))
            stack.push_async_callback(asyncio.wait, [reading])
            stack.callback(reading.cancel)
            await settled()
        assert not (await entered(stack, slots, Work(3, 10))).done()
        assert repr(slots) == "<Slots 0 of 2 taken, 3 alive, 1 waiting>"
        assert not slots.crowded


@pytest.mark.parametrize(("cores", "crowded"), [(2, True), (3, False), (64, False)])
async def test_more_cores_than_turns_are_for_more_threads(cores: int, crowded: bool) -> None:
    slots = Slots(2, spare=0, cores=cores)
    async with AsyncExitStack() as stack:
        for number in range(3):
            await entered(stack, slots, Work(number, 10))
        assert slots.crowded is crowded


@pytest.mark.parametrize(
    ("windows", "fit"),
    [
        ([0] * 8, [True] * 8),
        ([8] * 8, [True] * 8),
        ([32] * 3, [True, True, False]),
        ([32, 32, 8, 0, 16], [True, True, True, True, False]),
        ([16] * 7, [True] * 6 + [False]),
        ([32, 9, 32, 9], [True, True, False, True]),
    ],
)
def test_windows_fit_beside_each_other_up_to_a_sum(windows: list[int], fit: list[bool]) -> None:
    taken, found = 0, []
    for window in windows:
        found.append(memory_fits(Memory(window * MIB), taken))
        taken += max(0, window * MIB - ORDINARY_WINDOW) * found[-1]
    assert found == fit
    assert taken <= SHARED_MEMORY


def test_directories_and_windows_share_what_there_is_and_the_largest_has_it_alone() -> None:
    many, wide = Memory(remembered=MOST_REMEMBERED), Memory(MOST_WINDOW)
    assert memory_fits(many, 0)
    assert not memory_fits(many, ORDINARY_WINDOW)
    assert not memory_fits(wide, MOST_REMEMBERED - ORDINARY_REMEMBERED)
    both = Memory(MOST_WINDOW, MOST_REMEMBERED)
    assert memory_fits(both, 0), "nobody waits for ever"
    assert memory_fits(Memory(), SHARED_MEMORY * 2), "nor who asks for nothing"


async def test_a_wide_window_has_its_place_as_long_as_its_worker_lives_and_keeps_nobody_else_out() -> None:
    slots, slow = Slots(4, spare=2), Frontier(10)
    async with AsyncExitStack() as others, AsyncExitStack() as stack:
        turn = await stack.enter_async_context(slots.turn(Work(0, 10, Memory(MOST_WINDOW))))
        reading = asyncio.create_task(turn.follow(slow).beyond(0))
        await settled()
        assert (await entered(others, slots, Work(1, 10, Memory(MOST_WINDOW)))).done()
        third = await entered(others, slots, Work(2, 10, Memory(MOST_WINDOW)))
        assert not third.done(), "one waits for bytes, and has its window all the same"
        assert (await entered(others, slots, Work(3, 10))).done()
        slow.advance(10)
        assert await reading == 10
        await stack.aclose()
        await settled()
        assert third.done()
    assert repr(slots) == "<Slots 0 of 4 taken, 0 alive, 0 waiting>"
    async with AsyncExitStack() as stack:
        for number in range(2):
            assert (await entered(stack, slots, Work(number, 10, Memory(MOST_WINDOW)))).done(), (
                "what was taken is back"
            )


async def test_who_is_cancelled_when_its_turn_comes_gives_its_window_back() -> None:
    slots = Slots(1, spare=0)
    async with AsyncExitStack() as stack:
        async with slots.turn(Work(0, 10)):
            waiting = await entered(stack, slots, Work(1, 10, Memory(MOST_WINDOW)))
        # No turn of the loop between the end of the block and the cancellation.
        waiting.cancel()
        await asyncio.wait([waiting])
    assert slots._beyond == 0


def frame(window_log: int, content: bytes = b"") -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content or os.urandom(1000)) + compressor.flush()


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"pzst"


@pytest.mark.parametrize(
    ("head", "window"),
    [
        (frame(20), 1 * MIB),
        (frame(25), 32 * MIB),
        (frame(27), 128 * MIB),
        (SKIPPABLE + frame(24), 16 * MIB),
        (frame(20) + frame(24) + frame(21), 16 * MIB),
        (frame(24)[:5], 0),
        (frame(24)[:6], 16 * MIB),
        (frame(24) + b"something else", 16 * MIB),
        (b"\x1f\x8b\x08" + bytes(20), 0),
        (b"a/file" + bytes(506), 0),
        (b"", 0),
    ],
)
def test_the_first_frames_tell_the_window(head: bytes, window: int) -> None:
    assert first_window(head) == window


class Unpacking:
    """Staging with a chain, a download and workers that are none; `answers` of the workers come in order."""

    def __init__(self, folder: Path, slots: Slots, answers: list[Refused | None]) -> None:
        self.jobs: list[ExtractJob] = []
        self._folder = folder
        self._answers = answers
        (folder / "snapshots" / "1" / "fs").mkdir(parents=True)

        async def prepare() -> tuple[str, list[Mount]]:
            return "apart", [Mount("bind", "/runtime/snapshots/1/fs", ("rw", "rbind"))]

        async def alive(_: str) -> None:
            return

        self.staging = Staging(
            cast(Chain, SimpleNamespace(prepare_apart=prepare, check_alive=alive)),
            cast(Workers, SimpleNamespace(extract=self._extract)),
            slots,
            Roots(PurePosixPath("/runtime"), folder),
            urgency=Urgency(PullSettings(), urgent=True),
            cleanup_timeout=1,
        )

    async def _extract(self, job: ExtractJob, **_: object) -> Extracted:
        self.jobs.append(job)
        await settled()
        if self._answers and (refused := self._answers.pop(0)) is not None:
            raise refused
        return Extracted(diff_id=DIFF_ID, unpacked_bytes=5, entries=1)

    async def unpack(self, blob: bytes, position: int = 0) -> None:
        path = self._folder / f"blob-{position}"
        path.write_bytes(blob)

        async def verified() -> Path:
            return path

        layer = ChainLayer(Descriptor(OCI_LAYER, "sha256:b", len(blob)), DIFF_ID, f"sha256:{position}", "")
        with path.open("rb") as file:
            growing = SimpleNamespace(
                frontier=Frontier(len(blob), len(blob)), fd=file.fileno(), verified=verified
            )
            await self.staging.unpack(layer, position, cast(Growing, growing), extracting=lambda: None)


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(1, spare=0)
    yield made
    assert repr(made) == "<Slots 0 of 1 taken, 0 alive, 0 waiting>"
    assert made._beyond == 0


async def test_a_worker_has_one_thread_where_another_waits_for_the_core(tmp_path: Path, slots: Slots) -> None:
    unpacking = Unpacking(tmp_path, slots, [])
    async with asyncio.TaskGroup() as group, slots.turn(Work(9, 10)):
        for position in range(3):
            group.create_task(unpacking.unpack(b"layer", position))
        async with asyncio.timeout(30):
            while "3 waiting" not in repr(slots):  # noqa: ASYNC110 - they come from threads
                await asyncio.sleep(0.001)
    assert [job.threads for job in unpacking.jobs] == [1, 1, 2]


@pytest.mark.parametrize(
    ("blob", "window"),
    [(b"no zstd", 8), (frame(20), 8), (frame(23), 8), (frame(24), 16), (frame(25), 32), (frame(27), 32)],
    ids=["none", "1", "8", "16", "32", "128"],
)
async def test_a_worker_may_have_the_window_that_its_turn_stands_for(
    tmp_path: Path, slots: Slots, blob: bytes, window: int
) -> None:
    unpacking = Unpacking(tmp_path, slots, [])
    await unpacking.unpack(blob)
    assert [job.window for job in unpacking.jobs] == [window * MIB]


async def test_a_later_frame_with_a_wider_window_gets_a_turn_that_stands_for_it(
    tmp_path: Path, slots: Slots
) -> None:
    unpacking = Unpacking(tmp_path, slots, [Refused(WIDER_WINDOW, "32 MiB"), None])
    await unpacking.unpack(frame(20))
    assert [job.window for job in unpacking.jobs] == [8 * MIB, 32 * MIB]


async def test_more_directories_than_usual_get_a_turn_that_stands_for_them(
    tmp_path: Path, slots: Slots
) -> None:
    refusals = [Refused(MORE_DIRECTORIES, "4 MiB"), Refused(WIDER_WINDOW, "32 MiB"), None]
    unpacking = Unpacking(tmp_path, slots, refusals)
    await unpacking.unpack(frame(20))
    assert [(job.window, job.remembered) for job in unpacking.jobs] == [
        (8 * MIB, ORDINARY_REMEMBERED),
        (8 * MIB, MOST_REMEMBERED),
        (32 * MIB, MOST_REMEMBERED),
    ]


@pytest.mark.parametrize("reason", [WIDER_WINDOW, MORE_DIRECTORIES])
async def test_a_worker_that_is_never_content_is_not_asked_for_ever(
    tmp_path: Path, slots: Slots, reason: str
) -> None:
    unpacking = Unpacking(tmp_path, slots, [Refused(reason, "more")] * 5)
    with pytest.raises(Refused):
        await unpacking.unpack(frame(20))
    assert len(unpacking.jobs) == 2
