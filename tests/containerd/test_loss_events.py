"""What the runtimes' events say was deleted, in the words in which an agent knows what its images stand on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import pytest

from imageprepull.agent.losses import follow_losses
from imageprepull.oci.descriptor import Descriptor
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState
from imageprepull.runtime.connection import Containerd
from tests.containerd.agent_bench import Agent, agent_of
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import PullBench, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image, sha256


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


class Ears:
    """All that was said to be lost so far."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        self.told = asyncio.Event()

    def tell(self, lost: Collection[str]) -> None:
        self.lost |= set(lost)
        self.told.set()

    async def until(self, wanted: Collection[str], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not self.lost >= set(wanted):
                self.told.clear()
                await self.told.wait()


@asynccontextmanager
async def losses_followed(agent: Agent, on_loss: Callable[[Collection[str]], None]) -> AsyncIterator[None]:
    """For the time of the block `on_loss` is told what the runtime deletes."""
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(
            follow_losses(agent.node.subscribe, on_loss, namespace="k8s.io", settle=0.05, reconnect=1)
        )
        yield
        following.cancel()


async def test_all_that_a_present_image_stands_on_is_named_when_it_goes(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("named-0"), layer("named-1")])
    reference = fake_serve(fake, image)
    bench.daemon.trust(reference.partition("/")[0])
    ears = Ears()
    async with agent_of(bench) as agent, losses_followed(agent, ears.tell):
        agent.reconciler.take_spec([DesiredImage(reference=reference, digest=image.digest)])
        await agent.until(ImageState.READY)
        (view,) = agent.reconciler.views.values()
        assert view.held is not None
        documents = {image.digest, image.config.digest}
        layers = {one.blob.digest for one in image.layers}
        assert view.held.parts == documents | layers | set(image.chain_ids)
        gone = DesiredImage(reference=reference, digest=image.digest, state=Desired.ABSENT)
        agent.reconciler.take_spec([gone])
        await agent.until(ImageState.ABSENT)
        await subscribed(bench.containerd, ears)
        async with bench.held(content=documents | layers, snapshots=image.chain_ids):
            # What others stand on last.
            for chain_id in reversed(image.chain_ids):
                await bench.containerd.snapshots.remove(SNAPSHOTTER, chain_id)
            for digest in (*layers, image.config.digest, image.digest):
                await bench.containerd.content.delete(digest)
        records = [record.name for record in await bench.containerd.images.list()]
        for name in records:
            await bench.containerd.images.delete(name)
        assert reference in records
        await ears.until(view.held.parts.union(records))


async def test_a_loss_is_mended_while_others_delete_and_delete(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("beset-0"), layer("beset-1")])
    reference = fake_serve(fake, image)
    bench.daemon.trust(reference.partition("/")[0])
    async with (
        agent_of(bench) as agent,
        losses_followed(agent, agent.reconciler.suspect_lost),
        asyncio.TaskGroup() as tasks,
    ):
        agent.reconciler.take_spec([DesiredImage(reference=reference, digest=image.digest)])
        await agent.until(ImageState.READY)
        enough = asyncio.Event()
        tasks.create_task(delete_until(bench.containerd, enough))
        await bench.containerd.content.delete(image.config.digest)
        await agent.until(ImageState.PULLING)
        await agent.until(ImageState.READY)
        assert (await bench.presence(reference, image.digest)).present
        enough.set()


async def delete_until(containerd: Containerd, enough: asyncio.Event) -> None:
    """What is nobody's, up to fifty times in a second."""
    await containerd.leases.create("nobodys", {}, 60)
    leased = containerd.with_lease("nobodys")
    try:
        for number in itertools.count():
            if enough.is_set():
                break
            body = f"nobody's {number}".encode()
            digest = sha256(body)
            await leased.content.put(
                f"nobodys-{number}", Descriptor("text/plain", digest, len(body)), body, {}
            )
            await leased.content.delete(digest)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), 0.02)
    finally:
        await containerd.leases.delete("nobodys")


async def subscribed(containerd: Containerd, ears: Ears) -> None:
    """Nothing says when a subscription has begun, so something of nobody's is deleted until it is told."""
    body = b"nobody's"
    digest = sha256(body)
    await containerd.leases.create("nobodys", {}, 60)
    leased = containerd.with_lease("nobodys")
    try:
        async with asyncio.timeout(60):
            while digest not in ears.lost:
                await leased.content.put("nobodys", Descriptor("text/plain", digest, len(body)), body, {})
                await leased.content.delete(digest)
                with contextlib.suppress(TimeoutError):
                    await ears.until({digest}, seconds=0.3)
    finally:
        await containerd.leases.delete("nobodys")
