"""Concurrency and order, proven by withholding bytes: a FAKE registry holds a layer back until the test lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import PullBench, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, stall=60) as bench:
        yield bench
        await bench.assert_clean()


async def test_layers_are_applied_while_others_still_download(bench: PullBench, fake: FaultyRegistry) -> None:
    """Layer 2 comes only after layer 1 was applied and layer 4 downloaded."""
    image = build_image([layer(f"order-{n}", 60_000) for n in range(1, 5)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=1000, release=release)]
    progress = Watched("x")
    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    await progress.until(
        lambda seen: seen.states()[:1] == ["Applied"] and seen.states()[3] == LayerState.DOWNLOADED
    )
    assert progress.states()[1] in (LayerState.WAITING, LayerState.DOWNLOADING)
    release.set()
    await pulling
    applied = [number for number, state in progress.history if state == LayerState.APPLIED]
    assert applied == [0, 1, 2, 3]


async def test_two_images_share_what_they_have_in_common(bench: PullBench, fake: FaultyRegistry) -> None:
    base = [layer("common-0", 50_000), layer("common-1", 50_000)]
    images = [build_image([*base, layer(name)]) for name in ("left", "right")]
    release = asyncio.Event()
    fake.faults[images[0].layers[0].blob.digest] = [Fault(hold_after=1000, release=release)]
    records = [Watched("left"), Watched("right")]
    references = [fake_serve(fake, image, tag) for image, tag in zip(images, ("left", "right"), strict=True)]
    both = asyncio.gather(
        *(bench.pull(reference, record) for reference, record in zip(references, records, strict=True))
    )
    for record in records:
        await record.until(lambda seen: len(seen.layers) == 3 and seen.layers[2].state == "Downloaded")
    release.set()
    outcomes = await both
    for built in {b.blob.digest for image in images for b in image.layers}:
        assert len(fake.gets(built)) == 1, "each blob once"
    assert sum(outcome.bytes_downloaded for outcome in outcomes) == sum(
        {b.blob.digest: b.blob.size for image in images for b in image.layers}.values()
    )
    for reference in references:
        assert (await bench.presence(reference)).present


async def test_one_image_that_fails_does_not_take_the_other_along(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    base = layer("shared-fate", 50_000)
    good, bad = build_image([base, layer("good")]), build_image([base, layer("bad")])
    release = asyncio.Event()
    fake.faults[good.layers[0].blob.digest] = [Fault(hold_after=1000, release=release)]
    references = [fake_serve(fake, bad, "bad"), fake_serve(fake, good, "good")]
    del fake.blobs[bad.layers[1].blob.digest]
    failing = asyncio.create_task(bench.pull(references[0]))
    record = Watched("good")
    working = asyncio.create_task(bench.pull(references[1], record))
    await record.until(lambda seen: len(seen.layers) == 2 and seen.layers[1].state == "Downloaded")
    with pytest.raises(Exception, match=r"fake/image|blob"):
        await failing
    release.set()
    await working
    assert (await bench.presence(references[1])).present


async def test_the_limit_on_downloads_holds_over_images_and_follows_changes(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    bench.puller.parallel_downloads = 2
    image = build_image([layer(f"limit-{n}", 50_000) for n in range(5)])
    releases = [asyncio.Event() for _ in range(5)]
    for built, release in zip(image.layers, releases, strict=True):
        fake.faults[built.blob.digest] = [Fault(hold_after=1000, release=release)]
    progress = Watched("x")

    def started() -> list[int]:
        return [n for n, built in enumerate(image.layers) if fake.gets(built.blob.digest)]

    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    async with asyncio.timeout(60):
        while len(started()) < 2:  # noqa: ASYNC110 - the fake's requests have no event.
            await asyncio.sleep(0.01)
    assert started() == [0, 1], "lower layers first"
    bench.puller.parallel_downloads = 4
    async with asyncio.timeout(60):
        while len(started()) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert started() == [0, 1, 2, 3]
    for release in releases:
        release.set()
    await pulling


async def test_a_lease_that_vanishes_is_replaced_and_the_chain_asked_again(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("lost-0", 50_000), layer("lost-1", 50_000)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=1000, release=release)]
    progress = Watched("x")
    reference = fake_serve(fake, image)
    pulling = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda seen: seen.states()[:1] == ["Applied"])
    for lease in await bench.containerd.leases.list():
        await bench.containerd.leases.delete(lease.id, sync=True)
    assert await bench.containerd.snapshots.stat(SNAPSHOTTER, image.chain_ids[0]) is None
    release.set()
    await pulling
    assert (await bench.presence(reference)).present
