"""An image that somebody else made, or pinned by hand, is still theirs when we had to make its layers anew."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from imageprepull.oci.reference import Reference
from imageprepull.pulling.given_tags import forget as forget_tag
from imageprepull.pulling.given_tags import note
from imageprepull.pulling.labels import CRI_PINNED, LEASE, MANAGED, PINNED, RESTORED, UNSYNCED
from imageprepull.pulling.leases import INGESTS, discard_lease, expires_at
from imageprepull.pulling.provenance import THEIRS, forget, remember, remembered
from imageprepull.pulling.records import unpin
from imageprepull.pulling.removal import Verdict, remove_image
from imageprepull.pulling.unsynced import remove_unsynced
from imageprepull.pulling.urgency import wanted_elsewhere
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, OnRemoval
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import Unavailable
from imageprepull.runtime.images import Images
from imageprepull.runtime.leases import Lease, LeasedResource, Leases
from tests.containerd.agent_bench import agent_of
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.layer_trees import layer_folders
from tests.containerd.pull_bench import (
    BOOT,
    OWNER,
    PullBench,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
    serve,
)
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import BuiltImage, build_image


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


async def empty_a_layer(bench: PullBench, image: BuiltImage) -> None:
    for entry in (await layer_folders(bench.containerd, image.chain_ids[-1]))[1].iterdir():
        shutil.rmtree(entry)


async def disbelieve(bench: PullBench, image: BuiltImage) -> None:
    for chain_id in image.chain_ids:
        await bench.containerd.snapshots.update_labels(SNAPSHOTTER, chain_id, {UNSYNCED: "another boot"})


async def labels(bench: PullBench) -> list[dict[str, str]]:
    return [dict(record.labels) for record in await bench.containerd.images.list()]


async def delete(bench: PullBench, image: BuiltImage) -> Verdict:
    return await remove_image(
        bench.containerd, image.digest, snapshotter=SNAPSHOTTER, wanted=lambda: (), lease_labels={}
    )


@pytest.mark.parametrize("whose", ["the kubelet's", "ours"])
async def test_an_agent_that_repairs_an_image_of_the_kubelets_does_not_delete_it(
    bench: PullBench, fake: FaultyRegistry, whose: str
) -> None:
    image = build_image([layer(f"repaired-{whose}-{number}") for number in range(2)])
    entry = DesiredImage(reference=fake_serve(fake, image), digest=image.digest, pin=True)
    bench.daemon.trust(entry.reference.partition("/")[0])
    if whose != "ours":
        await pull_as_the_kubelet(bench.daemon, entry.reference)
    async with agent_of(bench, runs=False) as agent:
        agent.reconciler.take_spec([entry])
        await agent.passed()
        await empty_a_layer(bench, image)
        assert not (await bench.presence(entry.reference, image.digest)).present
        await agent.passed()
    assert (await bench.presence(entry.reference, image.digest, pin=True)).present
    async with agent_of(bench) as agent:
        gone = msgspec.structs.replace(entry, state=Desired.ABSENT, on_removal=OnRemoval.DELETE, pin=False)
        agent.reconciler.take_spec([gone])
        await agent.until(ImageState.ABSENT)
    assert (await bench.presence(entry.reference, image.digest)).present is (whose != "ours")
    assert not any({PINNED, CRI_PINNED} & found.keys() for found in await labels(bench))


async def test_it_is_known_when_the_agent_dies_between_the_removal_and_the_pull(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    image = build_image([layer("died-0"), layer("died-1")])
    reference = serve(registry, image, "provenance/died")
    await pull_as_the_kubelet(daemon, reference)
    async with pull_bench(containerd, daemon) as bench:
        await disbelieve(bench, image)
        assert len((await bench.sweep(None)).unsynced_images) == 3
    # One start later nobody wants it, or it is not known yet what is wanted.
    async with pull_bench(containerd, daemon) as bench:
        await bench.sweep()
        await collect_garbage(containerd)
        await bench.pull(reference, pin=True)
        assert {found[MANAGED] for found in await labels(bench)} == {RESTORED}
        assert (await delete(bench, image)).kept.endswith("was made by somebody else")
        assert await remembered(containerd, image.digest) == set(), "the records say it"
        # And once more: what we restored is remembered as theirs.
        await empty_a_layer(bench, image)
        await bench.pull(reference)
        assert (await delete(bench, image)).kept.endswith("was made by somebody else")
        await bench.assert_clean()


async def test_it_is_known_when_the_agent_dies_between_two_deletions(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("half-0"), layer("half-1")])
    reference = serve(registry, image, "provenance/half")
    await bench.pull(reference)
    await pull_as_the_kubelet(bench.daemon, reference)
    await disbelieve(bench, image)
    plain = Images.delete
    deleted: list[str] = []

    async def delete_one(self: Images, name: str) -> None:
        if deleted:
            raise Unavailable("delete an image record", "the agent dies here")
        deleted.append(name)
        await plain(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Images, "delete", delete_one)
        with pytest.raises(Unavailable):
            await remove_unsynced(bench.containerd, SNAPSHOTTER, BOOT, {LEASE: OWNER})
    assert deleted == [reference], "the tag's record, the one that the kubelet's pull has made"

    await bench.pull(reference)
    assert (await delete(bench, image)).kept.endswith("was made by somebody else")


@pytest.mark.parametrize("made_by", ["us", "the kubelet"])
async def test_a_pin_by_hand_comes_back_as_what_it_was(
    bench: PullBench, registry: DockerRegistry, made_by: str
) -> None:
    image = build_image([layer(f"pinned-{made_by}-{number}") for number in range(2)])
    reference = serve(registry, image, f"provenance/pinned-by-{made_by.rpartition(' ')[2]}")
    if made_by == "us":
        await bench.pull(reference)
    else:
        await pull_as_the_kubelet(bench.daemon, reference)
    await bench.pull(reference, pin=True, by_hand=True)
    await empty_a_layer(bench, image)

    await bench.pull(reference, pin=True)
    assert await unpin(bench.containerd, Reference.parse(reference), image.digest) == []
    for found in await labels(bench):
        assert {CRI_PINNED, PINNED} & found.keys() == {CRI_PINNED}
        assert found[MANAGED] == ("true" if made_by == "us" else RESTORED)
    assert (await delete(bench, image)).kept.endswith(
        "was pinned by somebody else" if made_by == "us" else "was made by somebody else"
    )


async def test_records_that_are_taken_back_are_restored_at_the_next_go(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("taken-back-0"), layer("taken-back-1")])
    reference = serve(registry, image, "provenance/taken-back")
    await pull_as_the_kubelet(bench.daemon, reference)
    await empty_a_layer(bench, image)
    missing = ["a layer that was collected"]

    async def missing_below(*_: object, **__: object) -> str:
        return missing.pop() if missing else ""

    monkeypatch.setattr("imageprepull.pulling.naming.missing_below", missing_below)
    await bench.pull(reference)
    assert missing == []
    assert {found[MANAGED] for found in await labels(bench)} == {RESTORED}


async def test_what_is_remembered_only_grows_until_it_is_forgotten(containerd: Containerd) -> None:
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    await remember(containerd, {one: frozenset({"made"}), two: frozenset({"made", "pinned"})})
    await remember(containerd, {one: frozenset({"pinned"}), two: frozenset({"made"})})
    for digest in (one, two):
        assert await remembered(containerd, digest) == {"made", "pinned"}
    await collect_garbage(containerd)
    assert await remembered(containerd, one) == {"made", "pinned"}
    for digest in (one, two, two):
        await forget(containerd, digest)
        assert await remembered(containerd, digest) == set()


async def test_what_is_remembered_counts_from_the_last_time_that_it_was_so(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, day = f"sha256:{'4' * 64}", 24 * 3600.0
    deeds = {digest: frozenset({"made"})}

    async def note() -> Lease:
        (found,) = [lease for lease in await containerd.leases.list() if THEIRS in lease.labels]
        return found

    await remember(containerd, deeds)
    first = await note()
    await remember(containerd, deeds)
    assert await note() == first, "not at each look"
    # As after half of the time.
    monkeypatch.setattr("imageprepull.pulling.memory._SECONDS", 100 * day)
    await remember(containerd, deeds)
    before, after = expires_at(first), expires_at(await note())
    assert before is not None
    assert after is not None
    assert before + 60 * day < after
    assert await remembered(containerd, digest) == {"made"}
    await forget(containerd, digest)
    assert await remembered(containerd, digest) == set()


async def test_nobody_asks_what_leases_hold_that_only_remember(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be one per image of the node, and a polite pull asks who holds its image all the time."""
    digest = f"sha256:{'3' * 64}"
    tag = Reference.parse("registry.example/tag:1")
    await remember(containerd, {digest: frozenset({"made"})})
    await note(containerd, tag, digest)
    await containerd.leases.create("pull", {LEASE: OWNER}, 60)
    await containerd.leases.add_resource("pull", INGESTS, "layer-of-a-pull")
    await containerd.leases.create("theirs", {}, 60)
    asked: set[str] = set()
    plain = Leases.resources

    async def resources(self: Leases, id: str) -> Sequence[LeasedResource]:  # noqa: A002
        asked.add(id)
        return await plain(self, id)

    with monkeypatch.context() as patched:
        patched.setattr(Leases, "resources", resources)
        assert not await wanted_elsewhere(containerd, {digest})
        assert asked == {"theirs"}
        assert await discard_lease(containerd, "pull") == ["layer-of-a-pull"]
        assert asked == {"theirs", "pull"}
    await forget(containerd, digest)
    await forget_tag(containerd, tag, digest)
    await containerd.leases.delete("theirs")
