"""Two entries of one tag that mean two digests, on real daemons: it settles, and nothing is pulled over and over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from imageprepull.agent.status import image_status
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, OnRemoval
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord, Images
from tests.containerd.agent_bench import agent_of
from tests.containerd.pull_bench import PullBench, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


def noting(
    plain: Callable[..., Awaitable[ImageRecord]], names: list[str]
) -> Callable[..., Awaitable[ImageRecord]]:
    async def noted(self: Images, name: str, *arguments: object) -> ImageRecord:
        names.append(name)
        return await plain(self, name, *arguments)

    return noted


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that were created or updated, one after the other."""
    names: list[str] = []
    for method in ("create", "update", "update_labels"):
        plain = getattr(Images, method)

        monkeypatch.setattr(Images, method, noting(plain, names))
    return names


async def records(bench: PullBench) -> dict[str, str]:
    return {record.name: record.target.digest for record in await bench.containerd.images.list()}


@pytest.mark.parametrize("there", ["nothing", "the loser under its tag"])
async def test_two_digests_of_one_tag_are_held_and_the_tag_stays_with_one_of_them(
    bench: PullBench, fake: FaultyRegistry, written: list[str], there: str
) -> None:
    images = [build_image([layer("tag-base"), layer(f"tag-{number}")]) for number in range(2)]
    kept, newer = sorted(images, key=lambda image: image.digest)
    reference = fake_serve(fake, kept)
    assert fake_serve(fake, newer) == reference
    name = reference.rpartition(":")[0]
    winner, loser = (
        DesiredImage(reference=reference, digest=image.digest, pin=True) for image in (kept, newer)
    )
    async with agent_of(bench, runs=False) as agent:
        if there != "nothing":
            agent.reconciler.take_spec([loser])
            await agent.passed()
        agent.reconciler.take_spec([loser, winner])
        for _ in range(2):
            await agent.passed()
        settled = {
            reference: kept.digest,
            **{f"{name}@{image.digest}": image.digest for image in images},
            **{image.config.digest: image.digest for image in images},
        }
        assert await records(bench) == settled
        written.clear()
        for _ in range(5):
            await agent.passed()
            assert [view.state for view in agent.reconciler.views.values()] == [ImageState.READY] * 2
        assert written == []
        assert await records(bench) == settled
        shown = [image_status(view) for view in agent.reconciler.views.values()]
        assert [one.reason == "HeldByDigest" for one in shown] == [True, False]
        assert kept.digest in shown[0].message
        for record in await bench.containerd.images.list():
            assert "io.cri-containerd.pinned" in record.labels, record.name
    await bench.puller.finish()


async def test_a_tag_follows_the_priority_once(
    bench: PullBench, fake: FaultyRegistry, written: list[str]
) -> None:
    images = [build_image([layer(f"priority-{number}")]) for number in range(2)]
    for image in images:
        reference = fake_serve(fake, image)
    first, second = (DesiredImage(reference=reference, digest=image.digest, priority=1) for image in images)
    async with agent_of(bench, runs=False) as agent:
        for high in (second, first):
            agent.reconciler.take_spec(
                [
                    entry if entry is high else msgspec.structs.replace(entry, priority=0)
                    for entry in (first, second)
                ]
            )
            for _ in range(2):
                await agent.passed()
            written.clear()
            await agent.passed()
            assert [view.state for view in agent.reconciler.views.values()] == [ImageState.READY] * 2
            assert (await records(bench))[reference] == high.digest
            assert written == []
        assert [view.losses.count for view in agent.reconciler.views.values()] == [0, 0]
    await bench.puller.finish()


async def test_the_tag_goes_to_the_entry_that_is_left_and_nothing_of_it_with_the_other(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    kept, newer = sorted(
        (build_image([layer("left-base"), layer(f"left-{number}")]) for number in range(2)),
        key=lambda image: image.digest,
    )
    reference = fake_serve(fake, kept)
    fake_serve(fake, newer)
    name = reference.rpartition(":")[0]
    winner, loser = (
        DesiredImage(reference=reference, digest=image.digest, pin=True) for image in (kept, newer)
    )
    async with agent_of(bench) as agent:
        agent.reconciler.take_spec([winner, loser])
        await agent.until(ImageState.READY, ImageState.READY)
        gone = msgspec.structs.replace(winner, state=Desired.ABSENT, on_removal=OnRemoval.DELETE, pin=False)
        agent.reconciler.take_spec([gone, loser])
        await agent.until(ImageState.ABSENT, ImageState.READY)
    assert await records(bench) == dict.fromkeys(
        (reference, f"{name}@{newer.digest}", newer.config.digest), newer.digest
    )
    assert (await bench.presence(reference, newer.digest, pin=True)).present
    await bench.puller.finish()
