"""What failed and stopped pulls hold: kept through an outage, given back when the node is short of disk, on both daemons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from imageprepull.agent.accounts import DELAYS
from imageprepull.agent.image import Gate
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE, LEASE_IMAGE
from imageprepull.pulling.leases import terms_of
from imageprepull.resources.nodeprepull import Desired
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import TimedOut
from imageprepull.unpacking.workers import Workers
from tests.containerd.agent_bench import agent_of
from tests.containerd.conftest import SNAPSHOTTER, fail_collections, leftovers
from tests.containerd.pull_bench import OWNER, PullBench, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import BuiltImage, build_image
from tests.unit.agent_doubles import StillClock
from tests.unit.agent_doubles import image as entry

CUT = 400_000


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, workers=workers) as bench:
        yield bench
        # Blobs are kept after the image is ready.
        await bench.puller.finish()
        await bench.assert_clean()


def two_layers(name: str) -> BuiltImage:
    return build_image([layer(f"{name}-0", 900_000), layer(f"{name}-1", 1_500_000)])


def outage(fake: FaultyRegistry, image: BuiltImage, status: int = 503) -> None:
    """In the middle of the upper layer, and no end of it."""
    fake.faults[image.layers[1].blob.digest] = [Fault(cut_after=CUT), *[Fault(status=status)] * 1000]


def blobs(bench: PullBench) -> set[str]:
    folder = bench.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("agent_is", ["the same", "a new one"])
@pytest.mark.parametrize("status", [503, 403])
async def test_an_outage_that_outlasts_every_attempt_costs_no_byte_that_was_fetched(
    bench: PullBench, fake: FaultyRegistry, status: int, agent_is: str
) -> None:
    """As little as credentials that end in the middle of an image."""
    image = two_layers("outage")
    lower, upper = (built.blob for built in image.layers)
    reference = fake_serve(fake, image, "outage")
    outage(fake, image, status)
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(agent_of(bench))
        agent.reconciler.take_spec([entry(reference, digest=image.digest, limit=3)])
        await agent.until("Failed")
        fake.faults.clear()
        before = len(fake.gets(lower.digest)), len(fake.gets(upper.digest))
        if agent_is == "a new one":
            await stack.aclose()
            assert len((await bench.sweep({image.digest})).kept_leases) == 1
            agent = await stack.enter_async_context(agent_of(bench))
        agent.reconciler.take_spec([entry(reference, digest=image.digest, nonce="it is back")])
        await agent.until("Ready")
        assert fake.gets(lower.digest)[before[0] :] == []
        (span,) = fake.gets(upper.digest)[before[1] :]
        assert int(span.removeprefix("bytes=").partition("-")[0]) >= CUT
        (view,) = agent.reconciler.views.values()
        assert view.progress is not None
        assert sum(view.progress.bytes_by_host.values()) <= upper.size - CUT


async def test_what_a_failed_image_keeps_goes_with_its_entry(bench: PullBench, fake: FaultyRegistry) -> None:
    image = two_layers("unwanted")
    outage(fake, image)
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([entry(fake_serve(fake, image), digest=image.digest, limit=1)])
        await agent.passed()
        assert len((await leftovers(bench.containerd)).leases) == 1
        agent.reconciler.take_spec([])
        await agent.passed()
        await bench.assert_clean()


async def test_another_reference_that_fails_for_good_costs_no_byte_that_was_fetched(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = two_layers("two-references")
    lower, upper = (built.blob for built in image.layers)
    outage(fake, image)
    clock = StillClock()
    async with FaultyRegistry() as empty, agent_of(bench, runs=False, clock=clock) as agent:
        first = entry(fake_serve(fake, image), digest=image.digest)
        agent.reconciler.take_spec([first])
        await agent.passed()
        before = len(fake.gets(lower.digest)), len(fake.gets(upper.digest))
        missing = entry(f"{empty.address}/fake/image:1", digest=image.digest)
        agent.reconciler.take_spec([first, missing])
        await agent.passed()
        one, two = agent.reconciler.views.values()
        assert (one.state, two.state) == ("Waiting", "Failed")
        fake.faults.clear()
        clock.seconds += 10
        await agent.passed()
        await agent.passed()
        assert one.state == "Ready"
        assert fake.gets(lower.digest)[before[0] :] == []
        (span,) = fake.gets(upper.digest)[before[1] :]
        assert int(span.removeprefix("bytes=").partition("-")[0]) >= CUT


async def test_what_a_failed_image_keeps_goes_when_the_object_is_gone_and_nobody_makes_a_new_one(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = two_layers("unchosen")
    outage(fake, image)
    clock = StillClock()
    async with agent_of(bench, runs=False, clock=clock) as agent:
        agent.reconciler.take_spec([entry(fake_serve(fake, image), digest=image.digest, limit=1)])
        await agent.passed()
        agent.reconciler.freeze()
        await agent.passed()
        assert len((await leftovers(bench.containerd)).leases) == 1
        assert bench.spooled()
        clock.seconds += DELAYS.unchosen
        await agent.passed()
        await bench.assert_clean()


async def test_what_unfinished_pulls_hold_is_given_back_when_the_node_is_short_of_disk(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    failed, stopped = two_layers("failed"), two_layers("stopped")
    outage(fake, failed)
    fake.faults[stopped.layers[1].blob.digest] = [Fault(hold_after=CUT)]
    one = fake_serve(fake, failed, "failed")
    two = fake_serve(fake, stopped, "stopped")
    before = blobs(bench)
    gate: Gate | None = None
    async with agent_of(bench, gate=lambda _: gate) as agent:
        first, second = entry(one, digest=failed.digest, limit=1), entry(two, digest=stopped.digest)
        agent.reconciler.take_spec([first, second])
        await agent.until("Failed", "Pulling")
        await agent.until("Failed", "Applied")
        agent.reconciler.take_spec([first, entry(two, digest=stopped.digest, state=Desired.PAUSED)])
        await agent.until_ended()
        assert len((await leftovers(bench.containerd)).leases) == 2
        assert bench.spooled()
        assert await bench.containerd.snapshots.list(SNAPSHOTTER)
        gate = Gate("NodeDiskPressure", "figures")
        agent.reconciler.wake()
        await agent.until_given_back()
        # Nobody has to collect for it, least of all the kubelet.
        await bench.assert_clean()
        assert await bench.containerd.snapshots.list(SNAPSHOTTER) == []
        assert blobs(bench) <= before
        gate = None
        fake.faults.clear()
        again = entry(one, digest=failed.digest, nonce="now")
        agent.reconciler.take_spec([again, second])
        await agent.until("Ready", "Ready")


async def test_a_pull_at_work_and_others_keep_what_they_hold(bench: PullBench, fake: FaultyRegistry) -> None:
    image = two_layers("at-work")
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=CUT, release=release)]
    progress = Watched("x")
    pulling = asyncio.create_task(
        bench.pull(fake_serve(fake, image), progress, digest=image.digest, keep_lease_on_failure=True)
    )
    await progress.until(lambda seen: seen.states() == ["Applied", "Extracting"])
    leases = bench.containerd.leases
    await leases.create("others", {LEASE: "another-node", LEASE_IMAGE: image.digest}, 60)
    await leases.create("of-no-image", {LEASE: OWNER}, 60)
    assert await bench.puller.give_back(OWNER) == 1
    release.set()
    await pulling
    assert len(fake.gets(image.layers[0].blob.digest)) == 1
    assert await bench.puller.give_back(OWNER) == 0
    assert sorted((await leftovers(bench.containerd)).leases) == ["of-no-image", "others"]
    for lease in ("others", "of-no-image"):
        await leases.delete(lease)


async def left_unfinished(bench: PullBench, fake: FaultyRegistry, name: str) -> tuple[str, str]:
    """A pull that was stopped in its upper layer: its lease, and the chain ID of the layer that it has brought."""
    image = two_layers(name)
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=CUT)]
    request = bench.request(fake_serve(fake, image, name), digest=image.digest, keep_lease_on_failure=True)
    progress = Watched(name)
    pulling = asyncio.create_task(bench.puller.pull(request, progress))
    await progress.until(lambda seen: seen.states()[:1] == ["Applied"])
    pulling.cancel()
    await asyncio.wait([pulling])
    return terms_of(request, image.digest, 60).id, image.chain_ids[0]


@pytest.mark.parametrize("which", ["the second", "the last"])
async def test_what_others_have_given_back_is_collected_though_one_of_them_begins_meanwhile(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    idle = sorted([await left_unfinished(bench, fake, name) for name in ("one", "two", "three")])
    begins, chain_id = idle[1 if which == "the second" else 2]
    spool, images = bench.puller._machinery.spool, bench.puller._machinery.images
    give_up = spool.give_up
    async with AsyncExitStack() as attempt:

        async def while_others_give_up(owner: str) -> None:
            await give_up(owner)
            if owner == idle[0][0]:
                await attempt.enter_async_context(images.hold(begins))

        with monkeypatch.context() as patch:
            patch.setattr(spool, "give_up", while_others_give_up)
            assert await bench.puller.give_back(OWNER) == 1
        assert (await leftovers(bench.containerd)).leases == [begins]
        assert [found.name for found in await bench.containerd.snapshots.list(SNAPSHOTTER)] == [chain_id]
    assert await bench.puller.give_back(OWNER) == 0
    assert await bench.containerd.snapshots.list(SNAPSHOTTER) == []


async def test_a_collection_that_fails_is_asked_for_again_though_nothing_more_is_given_back(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await left_unfinished(bench, fake, "owed")
    with monkeypatch.context() as patch:
        fail_collections(patch)
        # Whether the layer is still there says nothing: the runtime also collects when it likes.
        for _ in range(2):
            with pytest.raises(TimedOut):
                await bench.puller.give_back(OWNER)
            assert (await leftovers(bench.containerd)).leases == []
    assert await bench.puller.give_back(OWNER) == 0
    assert await bench.containerd.snapshots.list(SNAPSHOTTER) == []
    # It owes nothing more.
    with monkeypatch.context() as patch:
        fail_collections(patch)
        assert await bench.puller.give_back(OWNER) == 0


async def test_an_attempt_that_begins_while_its_image_gives_back_waits_and_keeps_its_own_lease(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, _ = await left_unfinished(bench, fake, "begins")
    spool, images = bench.puller._machinery.spool, bench.puller._machinery.images
    give_up = spool.give_up
    order: list[str | bool] = []

    async def attempt() -> None:
        async with images.hold(lease):
            order.append("the attempt has the image")
            order.append(lease in (await leftovers(bench.containerd)).leases)

    async def while_it_gives_up(owner: str) -> None:
        attempts.append(asyncio.create_task(attempt()))
        await give_up(owner)
        order.append("the spool is given up")

    attempts: list[asyncio.Task[None]] = []
    monkeypatch.setattr(spool, "give_up", while_it_gives_up)
    assert await bench.puller.give_back(OWNER) == 0
    await asyncio.wait(attempts)
    assert order == ["the spool is given up", "the attempt has the image", False], (
        "no lease that is about to go"
    )


@pytest.mark.parametrize("only", ["all", "these", "others"])
async def test_bytes_whose_lease_is_gone_are_given_back_too(
    bench: PullBench, fake: FaultyRegistry, only: str
) -> None:
    image = two_layers("no-lease")
    outage(fake, image)
    reference = fake_serve(fake, image)
    request = bench.request(reference, digest=image.digest, keep_lease_on_failure=True)
    with pytest.raises(PullError) as failure:
        await bench.puller.pull(request, Watched(reference))
    assert failure.value.resumable
    (lease,) = (await leftovers(bench.containerd)).leases
    assert lease == terms_of(request, image.digest, 60).id
    await bench.containerd.leases.delete(lease)
    chosen = {"all": None, "these": {lease}, "others": {"imageprepull-another"}}[only]
    assert await bench.puller.give_back(OWNER, chosen) == 0
    assert bool(bench.spooled()) is (only == "others")
    await bench.puller.give_back(OWNER)
