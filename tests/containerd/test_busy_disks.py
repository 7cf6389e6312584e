"""Pulls while the node's disks are busy, on both real daemons and paths.

A FAKE pressure file: what the kernel's own says depends on whatever else the machine does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imageprepull.pulling.plan import Work
from imageprepull.pulling.pressure import PressureTerms
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.workers import Workers
from tests.containerd.pull_bench import FAST, PullBench, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    file = tmp_path / "io"
    file.write_text("some avg10=90.00 avg60=0.00 avg300=0.00 total=1\n")
    return file


@asynccontextmanager
async def slow_bench(
    containerd: Containerd, daemon: ContainerdDaemon, file: Path, **options: Any
) -> AsyncIterator[PullBench]:
    """A puller that has learned from `file` that the disks are busy."""
    settings = replace(FAST, pressure=PressureTerms(path=file, interval=0.01), wanted_poll=0.02)
    async with pull_bench(containerd, daemon, settings=settings, parallel_unpacks=3, **options) as bench:
        machinery = bench.puller._machinery
        slow = asyncio.Event()
        machinery.polite_applies.watch(lambda: slow.set() if machinery.polite_applies.limit == 1 else None)
        async with asyncio.timeout(60):
            await slow.wait()
        yield bench


async def most_at_once(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry, path: dict[str, Any], file: Path
) -> dict[bool, int]:
    """The most layers that had a turn at the same time, for urgent images and for others."""
    found: dict[bool, int] = {}
    async with slow_bench(containerd, daemon, file, **path) as bench:
        machinery = bench.puller._machinery
        for urgent in (False, True):
            images = [build_image([layer(f"{urgent}{number}", 300_000)]) for number in range(4)]
            references = [fake_serve(fake, image, f"{urgent}{number}") for number, image in enumerate(images)]
            most = 0

            def look() -> None:
                nonlocal most
                most = max(most, machinery.applies.held, machinery.slots.running)

            watches = [Watched(reference) for reference in references]
            for watched in watches:
                watched.on_change = look
            async with asyncio.TaskGroup() as group:
                for reference, watched in zip(references, watches, strict=True):
                    group.create_task(bench.pull(reference, watched, urgent=urgent))
            found[urgent] = most
    return found


async def test_images_that_nobody_waits_for_take_turns_while_the_disks_are_busy(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    fake: FaultyRegistry,
    path: dict[str, Any],
    busy: Path,
) -> None:
    most = await most_at_once(containerd, daemon, fake, path, busy)
    assert most[False] == 1
    assert most[True] > 1, "somebody waits"


async def test_who_waits_for_a_polite_turn_has_one_as_soon_as_a_kubelet_wants_the_image(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    fake: FaultyRegistry,
    workers: Workers,
    busy: Path,
) -> None:
    """Whatever the others do meanwhile."""
    image = build_image([layer("wanted")])
    async with slow_bench(containerd, daemon, busy, path="fast", workers=workers) as bench:
        slots = bench.puller._machinery.slots
        progress = Watched("x")
        async with slots.turn(Work(0, 1), polite=lambda: True):
            pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress, urgent=False))
            await progress.until(lambda seen: seen.states() == ["Downloaded"])
            async with asyncio.timeout(60):
                while "1 waiting" not in repr(slots):  # noqa: ASYNC110 - they tell nobody.
                    await asyncio.sleep(0.01)
            assert "(1 of 1 politely)" in repr(slots)
            await containerd.leases.create("theirs", {}, 60)
            await containerd.leases.add_resource("theirs", "content", image.manifest.digest)
            async with asyncio.timeout(60):
                await pulling
        await containerd.leases.delete("theirs")
        assert (await bench.presence(fake_serve(fake, image))).present
