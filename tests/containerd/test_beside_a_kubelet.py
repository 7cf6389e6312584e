"""A polite pull while a kubelet pulls the same image: both end well, and ours stops holding back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from imageprepull.oci.digests import sha256_digest
from imageprepull.pulling import image as image_module
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.urgency import Manners, Urgency, wanted_elsewhere
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.conversation import Conversation
from imageprepull.unpacking.jobs import Extracted, ExtractJob
from imageprepull.unpacking.messages import Held, Hurry
from imageprepull.unpacking.workers import Workers
from tests.containerd.pull_bench import (
    FAST,
    OWNER,
    PullBench,
    Watched,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
)
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image

# Layers that are left to the kubelet have tests of their own.
SETTINGS = replace(FAST, wanted_poll=0.02, aside_small=0)


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, settings=SETTINGS, workers=workers, stall=60) as bench:
        yield bench


async def until_urgent(urgency: Urgency) -> None:
    async with asyncio.timeout(60):
        while not urgency.urgent:  # noqa: ASYNC110 - the product tells nobody: its next worker sees it.
            await asyncio.sleep(0.02)


async def test_only_a_lease_of_somebody_else_that_holds_the_image_counts(containerd: Containerd) -> None:
    wanted, other = (sha256_digest(name) for name in (b"wanted", b"other"))
    leases = containerd.leases
    await leases.create("ours", {"imageprepull.io/lease": OWNER}, 60)
    await leases.add_resource("ours", "content", wanted)
    await leases.create("theirs", {}, 60)
    await leases.add_resource("theirs", "content", other)
    assert not await wanted_elsewhere(containerd, {wanted})
    await leases.add_resource("theirs", "content", wanted)
    assert await wanted_elsewhere(containerd, {wanted})
    for lease in ("ours", "theirs"):
        await leases.delete(lease)


async def test_manners_last_until_somebody_waits(containerd: Containerd) -> None:
    wanted = sha256_digest(b"wanted")
    urgency = Urgency(SETTINGS, urgent=False)
    assert urgency.manners() == Manners(SETTINGS.polite_nice, SETTINGS.polite_dirty_bytes, polite=True)
    async with urgency.watched(containerd, {wanted}):
        await containerd.leases.create("theirs", {}, 60)
        await containerd.leases.add_resource("theirs", "content", wanted)

        await until_urgent(urgency)
    await containerd.leases.delete("theirs")
    assert urgency.manners() == Manners()


async def test_workers_are_given_the_manners_of_their_image(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Manners] = []
    extract = Workers.extract

    async def noted(self: Workers, job: ExtractJob, *, nice: int, **options: Any) -> Extracted:
        seen.append(Manners(nice, job.dirty_bytes, polite=nice > 0))
        return await extract(self, job, nice=nice, **options)

    monkeypatch.setattr(Workers, "extract", noted)
    for urgent in (False, True):
        await bench.pull(fake_serve(fake, build_image([layer(f"manners-{urgent}")])), urgent=urgent)
    polite = Manners(SETTINGS.polite_nice, SETTINGS.polite_dirty_bytes, polite=True)
    assert 0 not in (polite.nice, polite.dirty_bytes)
    assert seen == [polite, Manners()]


async def test_a_kubelet_that_pulls_the_same_image_gets_it_and_hurries_us(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("both-0", 50_000), layer("both-1", 400_000)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [
        Fault(hold_after=100_000, release=release),
        Fault(hold_after=100_000, release=release),
    ]
    reference = fake_serve(fake, image)
    daemon.trust(reference.partition("/")[0])
    seen: list[Urgency] = []

    class Seen(Urgency):
        def __init__(self, settings: PullSettings, urgent: bool) -> None:
            super().__init__(settings, urgent)
            seen.append(self)

    monkeypatch.setattr(image_module, "Urgency", Seen)
    told: list[object] = []
    tell = Conversation._tell

    async def noted(self: Conversation, message: Held | Hurry) -> None:
        told.append(message)
        await tell(self, message)

    monkeypatch.setattr(Conversation, "_tell", noted)
    progress = Watched(reference)
    ours = asyncio.create_task(bench.pull(reference, progress, urgent=False))
    await progress.until(lambda found: found.states() == ["Applied", "Extracting"])
    assert not seen[0].urgent
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, reference))

    await until_urgent(seen[0])
    try:
        async with asyncio.timeout(60):
            while Hurry() not in told:  # noqa: ASYNC110 - as above.
                await asyncio.sleep(0.02)
        assert not ours.done(), "the worker that was at it already"
    finally:
        release.set()
    await asyncio.gather(ours, theirs)
    assert (await bench.presence(reference)).present
    await bench.assert_clean()
