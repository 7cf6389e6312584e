"""Pulls while the node's disks are busy, on both real daemons and paths.

A FAKE pressure file: what the kernel's own says depends on whatever else the machine does.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from imageprepull.pulling.pressure import PressureTerms
from imageprepull.runtime.connection import Containerd
from tests.containerd.pull_bench import FAST, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image


async def most_at_once(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry, path: dict[str, Any], file: Path
) -> dict[bool, int]:
    """The most layers that had a turn at the same time, for urgent images and for others."""
    terms = PressureTerms(path=file, interval=0.01)
    found: dict[bool, int] = {}
    settings = replace(FAST, pressure=terms)
    async with pull_bench(containerd, daemon, settings=settings, parallel_unpacks=3, **path) as bench:
        machinery = bench.puller._machinery
        slow = asyncio.Event()
        machinery.polite_applies.watch(lambda: slow.set() if machinery.polite_applies.limit == 1 else None)
        async with asyncio.timeout(60):
            await slow.wait()
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
    tmp_path: Path,
) -> None:
    file = tmp_path / "io"
    file.write_text("some avg10=90.00 avg60=0.00 avg300=0.00 total=1\n")
    busy = await most_at_once(containerd, daemon, fake, path, file)
    assert busy[False] == 1
    assert busy[True] > 1, "somebody waits"
