"""Records of layers that are not believed, which somebody else takes between the look at them and their removal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

import pytest

from imageprepull.pulling.chain_removal import Removed
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import CRI_PINNED, GC_SNAPSHOT, LEASE, UNSYNCED
from imageprepull.pulling.provenance import forget, remembered
from imageprepull.pulling.removal import remove_image
from imageprepull.pulling.unsynced import remove_unsynced
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import Content, ContentInfo
from imageprepull.runtime.images import ImageRecord, Images
from imageprepull.runtime.snapshots import Snapshots
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import BOOT, OWNER, PullBench, layer, pull_as_the_kubelet, pull_bench, serve
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import BuiltImage, build_image

THEIRS = "registry.example/theirs:1"
"""As the CRI would name it: a short name stays in its list on 1.6 when the record has gone."""


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


async def records(bench: PullBench) -> dict[str, str]:
    return {record.name: record.target.digest for record in await bench.containerd.images.list()}


async def chains(bench: PullBench) -> set[str]:
    return {found.name for found in await bench.containerd.snapshots.list(SNAPSHOTTER)}


def names_of(image: BuiltImage, reference: str) -> set[str]:
    return {image.config.digest, reference, by_digest(image, reference)}


def by_digest(image: BuiltImage, reference: str) -> str:
    return f"{reference.rpartition(':')[0]}@{image.digest}"


async def disbelieve(bench: PullBench, *images: BuiltImage) -> None:
    for chain_id in {chain_id for image in images for chain_id in image.chain_ids}:
        await bench.containerd.snapshots.update_labels(SNAPSHOTTER, chain_id, {UNSYNCED: "another boot"})


async def remove(bench: PullBench, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Removed:
    """`meanwhile` comes when it is decided which records go, and none has gone."""

    async def keep(_: Collection[str]) -> None:
        if meanwhile is not None:
            await meanwhile()

    return await remove_unsynced(bench.containerd, SNAPSHOTTER, BOOT, {LEASE: OWNER}, keep=keep)


async def test_a_tag_that_means_another_image_by_now_stays_and_nothing_else_of_the_old_one(
    bench: PullBench, registry: DockerRegistry
) -> None:
    old, new = (build_image([layer(f"moved-{which}")]) for which in ("old", "new"))
    reference = serve(registry, old, "disbelieved/moved")
    await bench.pull(reference)
    await disbelieve(bench, old)

    async def move() -> None:
        serve(registry, new, "disbelieved/moved")
        await pull_as_the_kubelet(bench.daemon, reference)

    removed = await remove(bench, move)
    assert set(removed.records) == names_of(old, reference) - {reference}
    assert (removed.snapshots, removed.in_use) == (old.chain_ids, {})
    assert await records(bench) == dict.fromkeys(names_of(new, reference), new.digest)
    assert await chains(bench) == set(new.chain_ids)
    assert (await bench.presence(reference, new.digest)).present


async def test_a_pull_says_who_took_an_image_on_its_broken_layer_and_replaces_it_at_the_next_attempt(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("attempt-0"), layer("attempt-1")])
    reference = serve(registry, image, "disbelieved/attempt")
    await bench.pull(reference)
    await disbelieve(bench, image)
    get = Images.get

    async def pinned_meanwhile(self: Images, name: str) -> ImageRecord | None:
        if name == reference:
            monkeypatch.undo()
            await bench.containerd.images.update_labels(reference, {CRI_PINNED: "pinned"})
        return await get(self, name)

    monkeypatch.setattr(Images, "get", pinned_meanwhile)
    with pytest.raises(PullError, match=f"somebody else keeps it .the image {reference}, ") as caught:
        await bench.pull(reference)
    assert (caught.value.reason, caught.value.permanent) == ("UnsyncedInUse", False)
    assert (await records(bench)).keys() == names_of(image, reference)
    outcome = await bench.pull(reference)
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert (await bench.presence(reference)).present


async def test_a_collection_meanwhile_leaves_no_layer_that_the_runtime_would_never_remove(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had it taken what stands on the base, whose image stays, the runtime would say for ever that the base has a child."""
    base = build_image([layer("meanwhile-base")])
    image = build_image([layer("meanwhile-base"), layer("meanwhile")])
    other = serve(registry, base, "disbelieved/base")
    await bench.pull(other)
    await bench.pull(serve(registry, image, "disbelieved/meanwhile"))
    top = image.chain_ids[1]
    await bench.containerd.snapshots.update_labels(SNAPSHOTTER, top, {UNSYNCED: "another boot"})
    remove_one = Snapshots.remove

    async def after_a_collection(self: Snapshots, snapshotter: str, name: str) -> None:
        monkeypatch.undo()
        await collect_garbage(bench.containerd)
        await remove_one(self, snapshotter, name)

    monkeypatch.setattr(Snapshots, "remove", after_a_collection)
    assert (await remove(bench)).snapshots == [top]
    assert (await records(bench)).keys() == names_of(base, other)
    await bench.containerd.images.delete(other)
    await bench.containerd.snapshots.remove(SNAPSHOTTER, base.chain_ids[0])


@pytest.mark.parametrize("how", ["pulls", "pins", "names"])
async def test_an_image_that_somebody_else_takes_meanwhile_stays_whole_until_it_is_judged_again(
    bench: PullBench, registry: DockerRegistry, how: str
) -> None:
    base = layer(f"taken-{how}-base")
    taken, other = (build_image([base, layer(f"taken-{how}-{which}")]) for which in ("this", "other"))
    reference = serve(registry, taken, f"disbelieved/{how}")
    another = serve(registry, other, f"disbelieved/{how}-other")
    await bench.pull(reference)
    await bench.pull(another)
    await disbelieve(bench, taken, other)
    anew = serve(registry, taken, f"disbelieved/{how}", "anew")

    async def take() -> None:
        if how == "pulls":
            await pull_as_the_kubelet(bench.daemon, reference)
        elif how == "pins":
            await bench.containerd.images.update_labels(reference, {CRI_PINNED: "pinned"})
        else:
            await pull_as_the_kubelet(bench.daemon, anew)

    removed = await remove(bench, take)
    left = await records(bench)
    kept = anew if how == "names" else reference
    assert kept in left
    assert not names_of(other, another) & left.keys(), "of the other image all goes"
    assert set(left.values()) == {taken.digest}
    assert await chains(bench) == set(taken.chain_ids)
    assert removed.snapshots == other.chain_ids[1:]
    assert set(removed.in_use) == set(taken.chain_ids)
    assert all(kept in user for user in removed.in_use.values())
    assert removed.records
    assert not left.keys() & set(removed.records)
    if how != "names":
        assert left.keys() == names_of(taken, reference), "no record of it has gone"
    found = await bench.containerd.cri.image_status(kept)
    assert found is not None
    assert found.id == taken.config.digest

    again = await remove(bench)
    assert (set(again.records), again.snapshots) == (set(left), taken.chain_ids[::-1])
    assert (await records(bench), await chains(bench)) == ({}, set())
    assert await remembered(bench.containerd, taken.digest) == {"pinned" if how == "pins" else "made"}
    await forget(bench.containerd, taken.digest)


@pytest.mark.parametrize("when", ["before the look", "after it"])
async def test_an_image_that_somebody_else_names_while_its_layer_is_given_to_the_collection_keeps_its_layers(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A pull puts the label on the config, then makes its record, then drops its lease. Here it is taken off in between."""
    base = layer(f"given-{when[:5]}")
    gone, image = build_image([base, layer("given-gone")]), build_image([base])
    await bench.pull(serve(registry, gone, "disbelieved/given-gone"))
    reference = serve(registry, image, "disbelieved/given")
    await bench.pull(reference)
    # The runtime says of the base for ever that it has a child.
    await remove_image(
        bench.containerd, gone.digest, snapshotter=SNAPSHOTTER, wanted=lambda: (), lease_labels={}
    )
    await disbelieve(bench, image)
    (chain,) = image.chain_ids
    label = {f"{GC_SNAPSHOT}{SNAPSHOTTER}": chain}
    target = (await bench.containerd.images.list())[0].target
    theirs = bench.containerd.with_lease("theirs")
    update = Content.update_labels

    async def name_it() -> None:
        await theirs.images.create(THEIRS, target, {})

    async def with_a_pull(self: Content, digest: str, labels: Mapping[str, str]) -> ContentInfo:
        monkeypatch.undo()
        await update(self, image.config.digest, label)
        found = await update(self, digest, labels)
        if when == "before the look":
            await name_it()
            await theirs.leases.delete("theirs")
        return found

    # Its lease is older than the removal: without the records a collection may take the blobs at any moment.
    await theirs.leases.create("theirs", {}, 3600)
    for digest_of_theirs in (image.manifest.digest, image.config.digest):
        await theirs.leases.add_resource("theirs", "content", digest_of_theirs)
    monkeypatch.setattr(Content, "update_labels", with_a_pull)
    removed = await remove(bench)
    assert THEIRS not in removed.records
    if when == "after it":
        await name_it()
        await theirs.leases.delete("theirs")
    await collect_garbage(bench.containerd)
    # The CRI has made the ID's record beside it.
    assert {THEIRS: image.digest}.items() <= (await records(bench)).items()
    assert await chains(bench) == {chain}
    assert set(removed.in_use) == {chain}

    again = await remove(bench)
    assert THEIRS in again.records
    assert (again.snapshots, await chains(bench)) == ([chain], set())
    await forget(bench.containerd, image.digest)
