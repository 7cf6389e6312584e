"""A pin that the kubelet's own pull takes away comes back, on both daemons, and nothing else happens to the image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import msgspec
import pytest

from imageprepull.agent.containerd_node import ContainerdNode
from imageprepull.agent.losses import follow_losses
from imageprepull.agent.node import Held, NodeError
from imageprepull.oci.reference import Reference
from imageprepull.pulling.labels import CRI_PINNED
from imageprepull.pulling.leases import terms_of
from imageprepull.resources.nodeprepull import DesiredImage, ImageState
from imageprepull.runtime.connection import Containerd
from tests.containerd.agent_bench import Agent, agent_of
from tests.containerd.pull_bench import PullBench, fake_serve, layer, pull_as_the_kubelet, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


class Ears:
    """The runtime's events on their way to an agent, held back while the test looks."""

    def __init__(self, agent: Agent) -> None:
        self.told = asyncio.Event()
        self._agent = agent
        self._held: set[str] | None = None

    def tell(self, names: Collection[str]) -> None:
        if self._held is not None:
            self._held |= set(names)
            return
        self._agent.reconciler.suspect_named(names)
        self.told.set()

    def hold(self) -> None:
        self._held = set()

    def release(self) -> None:
        held, self._held = self._held, None
        self.tell(held or ())


def blobs_asked(fake: FaultyRegistry) -> list[str]:
    return [path for _, path, _ in fake.requests if "/blobs/" in path]


async def pinned(bench: PullBench) -> dict[str, bool]:
    return {record.name: CRI_PINNED in record.labels for record in await bench.containerd.images.list()}


async def test_an_always_pull_of_the_kubelet_does_not_unpin(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("always-0"), layer("always-1")])
    reference = fake_serve(fake, image)
    bench.daemon.trust(reference.partition("/")[0])
    async with agent_of(bench) as agent, asyncio.TaskGroup() as tasks:
        ears = Ears(agent)
        following = tasks.create_task(
            follow_losses(
                agent.node.subscribe,
                agent.reconciler.suspect_lost,
                on_changed=ears.tell,
                namespace="k8s.io",
                settle=0.05,
                reconnect=1,
            )
        )
        agent.reconciler.take_spec([DesiredImage(reference=reference, digest=image.digest, pin=True)])
        await agent.until(ImageState.READY)
        (view,) = agent.reconciler.views.values()
        asked = len(blobs_asked(fake))
        for _ in range(3):
            ears.hold()
            await pull_as_the_kubelet(bench.daemon, reference)
            assert not (await pinned(bench))[reference], "so the CRI does it"
            ears.release()
            async with asyncio.timeout(60):
                while not all((await pinned(bench)).values()):
                    # By the kubelet's change, and then by that which mends it.
                    await ears.told.wait()
                    ears.told.clear()
            await agent.until_believed()
            assert view.state is ImageState.READY
            assert (view.losses.count, view.backoff) == (0, None)
        assert len(blobs_asked(fake)) == asked, "no blob is fetched for it"
        following.cancel()


async def test_the_pins_of_what_cannot_be_judged_yield_and_are_then_reported_as_gone(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("unjudged")])
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([entry])
        await agent.until(ImageState.READY)

    async def held(*_: object) -> Held:
        raise NodeError("NotAnImage", "by order of the test", permanent=True)

    async with agent_of(bench, runs=False) as agent:
        monkeypatch.setattr(ContainerdNode, "held", held)
        agent.reconciler.take_spec([entry])
        await agent.passed()
        assert agent.reconciler.pins_left == 1
        assert all((await pinned(bench)).values())
        agent.reconciler.take_spec([msgspec.structs.replace(entry, pin=False)])
        await agent.passed()
        await agent.passed()
        assert agent.reconciler.pins_left == 0
        records = await pinned(bench)
        assert len(records) == 3
        assert not any(records.values())


async def test_the_sweep_and_the_pull_know_a_lease_by_one_name(bench: PullBench) -> None:
    """Where they did not, each start of an agent would drop what the next attempt is to resume."""
    image = DesiredImage(reference="a.io/x:1", digest=f"sha256:{'1' * 64}")
    async with agent_of(bench, runs=False) as agent:
        asked = agent.node._request(image, Reference.parse(image.reference))
        terms = agent.node.lease_of(image.digest)
        assert terms == terms_of(asked, image.digest, agent.node.puller.lease_seconds)
