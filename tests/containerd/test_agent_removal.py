"""The agent's reconciler over a real containerd: Absent entries while their image is pulled, and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from imageprepull.controller.strays import order_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, OnRemoval
from imageprepull.runtime.connection import Containerd
from tests.containerd.agent_bench import agent_of
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import PullBench, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image

THEIRS = "registry.example/theirs:1"


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


def gone(entry: DesiredImage, on_removal: OnRemoval = OnRemoval.DELETE) -> DesiredImage:
    return msgspec.structs.replace(entry, state=Desired.ABSENT, on_removal=on_removal, pin=False)


async def held(bench: PullBench) -> tuple[set[str], set[str], set[str]]:
    """Records, snapshots and blobs of the runtime."""
    return (
        {record.name for record in await bench.containerd.images.list()},
        {found.name for found in await bench.containerd.snapshots.list(SNAPSHOTTER)},
        {blob.digest for blob in await bench.containerd.content.list()},
    )


async def test_an_image_that_is_let_go_while_it_is_pulled_leaves_nothing(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("going-0"), layer("going-1", 400_000)])
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=100_000)]
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([entry])
        await agent.until("Applied")
        agent.reconciler.take_spec([gone(entry)])
        await agent.until(ImageState.ABSENT)
        assert await held(bench) == (set(), set(), set())
        assert bench.spooled() == []


@pytest.mark.parametrize("state", ["pulled", "being pulled"])
async def test_of_two_tags_one_is_let_go_and_then_the_other_with_everything(
    bench: PullBench, fake: FaultyRegistry, state: str
) -> None:
    image = build_image([layer("tags-0"), layer("tags-1", 400_000)])
    release = asyncio.Event()
    if state == "being pulled":
        fake.faults[image.layers[1].blob.digest] = [
            Fault(hold_after=100_000, release=release) for _ in range(2)
        ]
    one, two = (
        DesiredImage(reference=fake_serve(fake, image, tag), digest=image.digest, pin=True)
        for tag in ("1", "2")
    )
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([one, two])
        await agent.until(*["Ready"] * 2 if state == "pulled" else ["Pulling"] * 2)
        agent.reconciler.take_spec([gone(one), two])
        release.set()
        await agent.until(ImageState.ABSENT, ImageState.READY)
        assert (await bench.presence(two.reference, image.digest, pin=True)).present
        agent.reconciler.take_spec([gone(two)])
        await agent.until(ImageState.ABSENT)
        assert await held(bench) == (set(), set(), set())


async def test_of_two_tags_that_are_let_go_at_once_nothing_stays(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("both-at-once")])
    one, two = (
        DesiredImage(reference=fake_serve(fake, image, tag), digest=image.digest) for tag in ("1", "2")
    )
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([one, two])
        await agent.until(ImageState.READY, ImageState.READY)
        agent.reconciler.take_spec([gone(one), gone(two)])
        await agent.until(ImageState.ABSENT, ImageState.ABSENT)
        assert await held(bench) == (set(), set(), set())


async def test_an_image_that_is_retained_is_unpinned_and_stays(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("retained")])
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([entry])
        await agent.until(ImageState.READY)
        agent.reconciler.take_spec([gone(entry, OnRemoval.UNPIN)])
        await agent.until(ImageState.ABSENT)
        assert (await bench.presence(entry.reference, image.digest)).present
        for record in await bench.containerd.images.list():
            assert not {"io.cri-containerd.pinned", "imageprepull.io/pinned"} & record.labels.keys()


@pytest.mark.parametrize("left", ["all records", "the ID alone"])
async def test_a_pin_that_no_entry_names_is_reported_and_goes_with_the_order_for_it(
    bench: PullBench, fake: FaultyRegistry, left: str
) -> None:
    """As on a node that registers anew on the same disk: an agent that has never heard of the image."""
    image = build_image([layer("stray")])
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([entry])
        await agent.until(ImageState.READY)
        assert agent.reconciler.stray_pins == []
    images = bench.containerd.images
    records = await images.list()
    assert len(records) == 3
    if left == "the ID alone":
        for record in records:
            if record.name != image.config.digest:
                await images.delete(record.name)
    # Pinned by somebody else.
    await images.create(THEIRS, records[0].target, {"io.cri-containerd.pinned": "pinned"})
    name = entry.reference if left == "all records" else image.config.digest
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([])
        await agent.until_strays(name)
        agent.reconciler.take_spec([order_of((name, image.digest))])
        await agent.until(ImageState.ABSENT)
        agent.reconciler.take_spec([])
        await agent.until_strays()
    after = {record.name: record.labels.keys() for record in await images.list()}
    assert len(after) == (4 if left == "all records" else 2)
    assert "io.cri-containerd.pinned" in after.pop(THEIRS)
    for labels in after.values():
        assert not {"io.cri-containerd.pinned", "imageprepull.io/pinned"} & labels


@pytest.mark.parametrize("state", [Desired.PRESENT, Desired.PAUSED])
async def test_a_pin_that_yielded_comes_back_without_a_pull(
    bench: PullBench, fake: FaultyRegistry, state: Desired
) -> None:
    image = build_image([layer(f"yielding-{state}")])
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([entry])
        await agent.until(ImageState.READY)
        entry = msgspec.structs.replace(entry, state=state)
        fake.manifests.clear()
        fake.blobs.clear()
        for pin in (False, True):
            agent.reconciler.take_spec([msgspec.structs.replace(entry, pin=pin)])
            await agent.until_pinned(pin)
            assert (await bench.presence(entry.reference, image.digest, pin=pin)).present


async def test_when_one_of_two_tags_is_retained_both_stay(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("all-must-say-so")])
    one, two = (
        DesiredImage(reference=fake_serve(fake, image, tag), digest=image.digest) for tag in ("1", "2")
    )
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([one, two])
        await agent.until(ImageState.READY, ImageState.READY)
        agent.reconciler.take_spec([gone(one), gone(two, OnRemoval.UNPIN)])
        await agent.until(ImageState.ABSENT, ImageState.ABSENT)
        for entry in (one, two):
            assert (await bench.presence(entry.reference, image.digest)).present
