"""Two entries of one tag that mean two digests, on real daemons: it settles, and nothing is pulled over and over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf

import msgspec
import pytest

from imageprepull.agent.status import image_status
from imageprepull.oci.reference import Reference
from imageprepull.pulling.given_tags import GIVEN, note
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.leases import expires_at
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, OnRemoval
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import Unavailable
from imageprepull.runtime.images import ImageRecord, Images
from tests.containerd.agent_bench import Agent, agent_of
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import PullBench, fake_serve, layer, pull_as_the_kubelet, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import BuiltImage, build_image


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
        for high in (second, first, second):
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


def moving(fake: FaultyRegistry, daemon: ContainerdDaemon) -> tuple[str, BuiltImage, BuiltImage]:
    """A tag, what it means first, which is served, and what it means later."""
    old, new = build_image([layer("moving"), layer("old")]), build_image([layer("moving"), layer("new")])
    reference = fake_serve(fake, old)
    daemon.trust(reference.partition("/")[0])
    return reference, old, new


async def settled(agent: Agent) -> None:
    for _ in range(3):
        await agent.passed()


async def give_and_move(
    bench: PullBench, fake: FaultyRegistry, agent: Agent, entry: DesiredImage, new: BuiltImage
) -> None:
    """The order gives its image the tag; then a pod that always pulls moves it to what the registry means by it now."""
    agent.reconciler.take_spec([entry])
    await settled(agent)
    fake_serve(fake, new)
    await pull_as_the_kubelet(bench.daemon, entry.reference)


def said(agent: Agent) -> tuple[str, str, int]:
    (view,) = agent.reconciler.views.values()
    shown = image_status(view)
    # Of containerd 1.6.20, which knows no pins: no matter here.
    reason = "" if shown.reason == "PinIneffective" else shown.reason
    return shown.state, reason, view.losses.count


@pytest.mark.parametrize("pin", [True, False], ids=["pinned", "not pinned"])
@pytest.mark.parametrize("there", ["nothing", "the image by the kubelet", "another by the kubelet"])
async def test_a_tag_that_somebody_else_moves_is_left_and_the_image_held(
    bench: PullBench,
    fake: FaultyRegistry,
    daemon: ContainerdDaemon,
    *,
    written: list[str],
    pin: bool,
    there: str,
) -> None:
    reference, old, new = moving(fake, daemon)
    entry = DesiredImage(reference=reference, digest=old.digest, pin=pin)
    if there == "another by the kubelet":
        fake_serve(fake, build_image([layer("older")]))
        await pull_as_the_kubelet(daemon, reference)
        fake_serve(fake, old)
    elif there != "nothing":
        await pull_as_the_kubelet(daemon, reference)
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([entry])
        await settled(agent)
        assert said(agent) == ("Ready", "", 0)
        assert (await records(bench))[reference] == old.digest, "the order gets its tag, once"
        fake_serve(fake, new)
        for _ in range(3):
            await pull_as_the_kubelet(daemon, reference)
            written.clear()
            await settled(agent)
            assert said(agent) == ("Ready", "HeldByDigest", 0)
            assert (await records(bench))[reference] == new.digest
            assert written == []
        (view,) = agent.reconciler.views.values()
        assert new.digest in image_status(view).message
    # As at a start on a node whose NodePrepull is gone: that no order is seen ends none.
    await bench.sweep(())
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([entry])
        await settled(agent)
        assert said(agent) == ("Ready", "HeldByDigest", 0), "an agent that starts anew knows it too"
        await bench.containerd.images.delete(old.config.digest)
        await settled(agent)
        assert (await records(bench))[old.config.digest] == old.digest, "what is missing is brought back"
        assert (await records(bench))[reference] == new.digest, "and the tag is left at that too"
    by_digest = await bench.containerd.images.get(f"{reference.rpartition(':')[0]}@{old.digest}")
    assert by_digest is not None
    assert ("io.cri-containerd.pinned" in by_digest.labels) == pin
    await bench.puller.finish()


async def test_a_tag_that_was_moved_follows_the_next_order_and_the_one_after_it(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    reference, old, new = moving(fake, daemon)
    first, second = (DesiredImage(reference=reference, digest=image.digest, pin=True) for image in (old, new))
    gone = {"state": Desired.ABSENT, "pin": False}
    async with agent_of(bench, runs=False) as agent:
        await give_and_move(bench, fake, agent, first, new)
        agent.reconciler.take_spec([second, msgspec.structs.replace(first, **gone)])
        await settled(agent)
        shown = [image_status(view) for view in agent.reconciler.views.values()]
        assert [one.state for one in shown] == ["Ready", "Absent"]
        assert "HeldByDigest" not in [one.reason for one in shown]
        tag = await bench.containerd.images.get(reference)
        assert tag is not None
        assert tag.target.digest == new.digest
        assert "io.cri-containerd.pinned" in tag.labels
        await agent.node.unpin(msgspec.structs.replace(first, **gone))
        assert await notes(bench) == [(reference, new.digest)], "what ends is that order's alone"
        agent.reconciler.take_spec([first])
        await settled(agent)
        assert said(agent)[:2] == ("Ready", "")
        assert (await records(bench))[reference] == old.digest, "an order back is an order, too"
    await bench.puller.finish()


@pytest.mark.parametrize("pin", [True, False], ids=["pinned", "not pinned"])
@pytest.mark.parametrize("then", ["pulled by its digest", "collected", "removed by hand"])
async def test_a_moved_tag_is_left_whatever_becomes_of_the_images_records(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, *, pin: bool, then: str
) -> None:
    reference, old, new = moving(fake, daemon)
    by_digest = f"{reference.rpartition(':')[0]}@{old.digest}"
    async with agent_of(bench, runs=False) as agent:
        await give_and_move(
            bench, fake, agent, DesiredImage(reference=reference, digest=old.digest, pin=pin), new
        )
        await settled(agent)
        if then == "pulled by its digest":
            await pull_as_the_kubelet(daemon, by_digest)
        else:
            # As the kubelet does it, or `crictl rmi`.
            for name in (old.config.digest, by_digest):
                await bench.containerd.images.delete(name)
            if then == "collected":
                await collect_garbage(bench.containerd)
        await settled(agent)
        losses = 0 if then == "pulled by its digest" else 1
        assert said(agent) == ("Ready", "HeldByDigest", losses)
        assert (await records(bench))[reference] == new.digest
        assert (await records(bench))[by_digest] == old.digest
    await bench.puller.finish()


async def test_a_tag_that_moves_before_the_agent_has_looked_at_what_it_pulled_is_left(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    reference, old, new = moving(fake, daemon)
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([DesiredImage(reference=reference, digest=old.digest)])
        await agent.passed()
        assert (await records(bench))[reference] == old.digest
        fake_serve(fake, new)
        await pull_as_the_kubelet(daemon, reference)
        await settled(agent)
        assert said(agent) == ("Ready", "HeldByDigest", 0)
        assert (await records(bench))[reference] == new.digest
    await bench.puller.finish()


@pytest.mark.parametrize("moved", [True, False])
async def test_a_tag_that_vanishes_is_given_again(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, *, moved: bool
) -> None:
    reference, old, new = moving(fake, daemon)
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([DesiredImage(reference=reference, digest=old.digest)])
        await settled(agent)
        if moved:
            fake_serve(fake, new)
            await pull_as_the_kubelet(daemon, reference)
            await settled(agent)
        await bench.containerd.images.delete(reference)
        await settled(agent)
        assert said(agent)[:2] == ("Ready", "")
        assert (await records(bench))[reference] == old.digest
    await bench.puller.finish()


async def notes(bench: PullBench) -> list[tuple[str, str]]:
    """The digests that tags were given to, by tag."""
    leases = [lease.labels for lease in await bench.containerd.leases.list() if GIVEN in lease.labels]
    return sorted((labels[GIVEN], labels[LEASE_IMAGE]) for labels in leases)


async def test_what_is_remembered_of_a_tag_is_kept_anew_for_as_long_as_the_order_stands(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, old, new = moving(fake, daemon)

    async def ends() -> float:
        (lease,) = [lease for lease in await bench.containerd.leases.list() if GIVEN in lease.labels]
        return expires_at(lease) or inf

    async with agent_of(bench, runs=False) as agent:
        await give_and_move(bench, fake, agent, DesiredImage(reference=reference, digest=old.digest), new)
        await settled(agent)
        before = await ends()
        await settled(agent)
        assert await ends() == before, "not at each look"
        # As after half of the time.
        monkeypatch.setattr("imageprepull.pulling.memory._SECONDS", 100 * 24 * 3600.0)
        await settled(agent)
        assert before + 60 * 24 * 3600 < await ends() < inf
        assert said(agent) == ("Ready", "HeldByDigest", 0)
        assert (await records(bench))[reference] == new.digest
    await bench.puller.finish()


async def test_an_agent_that_died_between_two_notes_of_a_tag_leaves_it_to_the_newer_order(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, old, new = moving(fake, daemon)
    first, second = (DesiredImage(reference=reference, digest=image.digest) for image in (old, new))

    async def die(*_: object, **__: object) -> None:
        raise Unavailable("delete a lease", "the agent dies here")

    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([first])
        await settled(agent)
        fake_serve(fake, new)
        with monkeypatch.context() as patched:
            patched.setattr("imageprepull.pulling.given_tags.drop_lease", die)
            with pytest.raises(Unavailable):
                await note(bench.containerd, Reference.parse(reference), new.digest)
        assert len(await notes(bench)) == 2
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([second])
        await settled(agent)
        assert await notes(bench) == [(reference, new.digest)]
        agent.reconciler.take_spec([first])
        await settled(agent)
        assert (await records(bench))[reference] == old.digest, "an order back is an order, too"
        assert await notes(bench) == [(reference, old.digest)]
    await bench.puller.finish()


@pytest.mark.parametrize("end", ["unpinned", "kept", "in use", "removed"])
async def test_an_order_that_is_given_again_gets_its_tag_again(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, end: str
) -> None:
    reference, old, new = moving(fake, daemon)
    entry = DesiredImage(reference=reference, digest=old.digest)
    by_digest = f"{reference.rpartition(':')[0]}@{old.digest}"
    snapshots = bench.containerd.snapshots
    async with agent_of(bench, runs=False) as agent:
        await give_and_move(bench, fake, agent, entry, new)
        await settled(agent)
        if end == "kept":
            await pull_as_the_kubelet(daemon, by_digest)
        if end == "in use":
            kept = {"containerd.io/gc.root": "as what a container uses"}
            await snapshots.prepare(SNAPSHOTTER, "a container", old.chain_ids[-1], kept)
        removal = OnRemoval.UNPIN if end == "unpinned" else OnRemoval.DELETE
        agent.reconciler.take_spec([msgspec.structs.replace(entry, state=Desired.ABSENT, on_removal=removal)])
        await agent.passed()
        await agent.until_let_go()
        assert said(agent)[0] == ("Waiting" if end == "in use" else "Absent")
        assert (by_digest in await records(bench)) is (end != "removed")
        assert await notes(bench) == []
        agent.reconciler.take_spec([entry])
        await settled(agent)
        assert said(agent)[:2] == ("Ready", "")
        assert (await records(bench))[reference] == old.digest
        assert await notes(bench) == [(reference, old.digest)]
        if end == "in use":
            await snapshots.remove(SNAPSHOTTER, "a container")
    await bench.puller.finish()


async def test_an_order_to_remove_an_image_ends_nothing_before_it_is_confirmed(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    reference, old, new = moving(fake, daemon)
    entry = DesiredImage(reference=reference, digest=old.digest)
    async with agent_of(bench, runs=False) as agent:
        await give_and_move(bench, fake, agent, entry, new)
        await settled(agent)
        # What comes first of a removal, while the order is asked for once more.
        gone = msgspec.structs.replace(entry, state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
        await agent.node.unpin(gone)
        await settled(agent)
        assert said(agent) == ("Ready", "HeldByDigest", 0)
        assert (await records(bench))[reference] == new.digest
    await bench.puller.finish()


async def test_a_pull_by_hand_gives_the_tag_to_what_it_brings(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    reference, old, new = moving(fake, daemon)
    async with agent_of(bench, runs=False) as agent:
        await give_and_move(bench, fake, agent, DesiredImage(reference=reference, digest=old.digest), new)
        fake_serve(fake, old)
        await bench.pull(reference)
        assert (await records(bench))[reference] == old.digest
        await settled(agent)
        assert said(agent) == ("Ready", "", 0)
    await bench.puller.finish()
