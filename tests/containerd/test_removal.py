"""Removing what we brought: all of it or nothing, whoever else has a hand on it, and wherever the agent dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from imageprepull.oci.reference import Reference
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import CRI_PINNED, LEASE
from imageprepull.pulling.records import unpin
from imageprepull.pulling.removal import Verdict, remove_image
from imageprepull.pulling.visible import wait_visible
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import TimedOut
from imageprepull.runtime.images import Images
from imageprepull.runtime.leases import Lease, Leases
from imageprepull.runtime.snapshots import SnapshotKind
from tests.containerd.conftest import SNAPSHOTTER, fail_collections
from tests.containerd.pull_bench import (
    FAST,
    OWNER,
    PullBench,
    answering,
    layer,
    pull_as_the_kubelet,
    pull_bench,
    serve,
    start_daemon,
)
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import BuiltImage, build_image, build_index


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


async def remove(bench: PullBench, digest: str, wanted: frozenset[str] = frozenset()) -> Verdict:
    return await remove_image(
        bench.containerd,
        digest,
        snapshotter=SNAPSHOTTER,
        wanted=lambda: wanted,
        lease_labels={LEASE: OWNER},
    )


async def records(bench: PullBench) -> set[str]:
    return {record.name for record in await bench.containerd.images.list()}


async def blobs(bench: PullBench) -> set[str]:
    return {blob.digest for blob in await bench.containerd.content.list()}


async def chains(bench: PullBench) -> set[str]:
    return {
        found.name
        for found in await bench.containerd.snapshots.list(SNAPSHOTTER)
        if found.kind is SnapshotKind.COMMITTED
    }


async def cri_lists_only(bench: PullBench, config_digest: str) -> None:
    """Until the CRI lists that image and no other: its list follows the records by events, some time after."""
    async with asyncio.timeout(60):
        while {shown.id for shown in await bench.containerd.cri.list_images()} != {config_digest}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def digest_record(reference: str, image: BuiltImage) -> str:
    return f"{reference.rpartition(':')[0]}@{image.digest}"


def names_of(image: BuiltImage, *references: str) -> set[str]:
    by_digest = {digest_record(reference, image) for reference in references}
    return {image.config.digest, *references, *by_digest}


@asynccontextmanager
async def container_on(bench: PullBench, chain_id: str, key: str = "1b9c") -> AsyncIterator[None]:
    """A snapshot as a container has it; its key is the container's ID."""
    snapshots = bench.containerd.snapshots
    await snapshots.prepare(SNAPSHOTTER, key, chain_id, {"containerd.io/gc.root": "now"})
    try:
        yield
    finally:
        await snapshots.remove(SNAPSHOTTER, key)


@pytest.mark.parametrize("pin", [False, True])
async def test_an_image_goes_with_all_its_names_layers_and_blobs_and_leaves_those_of_others(
    bench: PullBench, registry: DockerRegistry, pin: bool
) -> None:
    image = build_image([layer("base"), layer("gone")])
    other = build_image([layer("base"), layer("stays")])
    reference = serve(registry, image, f"removal/gone-{int(pin)}")
    staying = serve(registry, other, f"removal/stays-{int(pin)}")
    await bench.pull(reference, pin=pin)
    await bench.pull(staying, pin=pin)

    verdict = await remove(bench, image.digest)
    assert set(verdict.records) == names_of(image, reference)
    assert verdict.records[-1] == image.config.digest
    assert await records(bench) == names_of(other, staying)
    assert await chains(bench) == set(other.chain_ids)
    assert not await blobs(bench) & {image.digest, image.config.digest, image.layers[1].blob.digest}
    await cri_lists_only(bench, other.config.digest)
    assert (await bench.presence(staying)).present
    assert await remove(bench, image.digest) == Verdict(), "once more is nothing"


@pytest.mark.parametrize("tag", ["1", "2"])
async def test_what_the_kubelet_pulled_too_stays_under_every_name(
    bench: PullBench, registry: DockerRegistry, tag: str
) -> None:
    """Under the same name a pod with pull policy Always has pulled it, under another one a pod of its own."""
    image = build_image([layer(f"pulled-too-{tag}")])
    reference = serve(registry, image, f"removal/pulled-too-{tag}")
    theirs = serve(registry, image, f"removal/pulled-too-{tag}", tag)
    await bench.pull(reference, pin=True)
    await pull_as_the_kubelet(bench.daemon, theirs)

    verdict = await remove(bench, image.digest)
    assert verdict == Verdict(kept=f"{theirs} was made by somebody else")
    assert await records(bench) == names_of(image, reference, theirs)
    for name in (reference, theirs):
        found = await bench.presence(name)
        assert found.present, found.missing


async def test_what_was_there_before_us_is_not_ours_to_remove(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("before")])
    reference = serve(registry, image, "removal/before")
    await pull_as_the_kubelet(bench.daemon, reference)
    await bench.pull(reference, pin=True)
    assert (await remove(bench, image.digest)).kept
    assert (await bench.presence(reference)).present


async def test_what_somebody_has_pinned_by_hand_stays(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("by-hand")])
    reference = serve(registry, image, "removal/by-hand")
    await bench.pull(reference)
    await bench.containerd.images.update_labels(reference, {CRI_PINNED: "pinned"})
    assert await remove(bench, image.digest) == Verdict(kept=f"{reference} was pinned by somebody else")
    assert (await bench.presence(reference)).present
    await bench.containerd.images.update_labels(reference, {CRI_PINNED: ""})
    assert not (await remove(bench, image.digest)).kept


async def test_what_a_container_uses_is_removed_when_it_is_gone(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("used-base"), layer("used")])
    reference = serve(registry, image, "removal/used")
    await bench.pull(reference)
    async with container_on(bench, image.chain_ids[-1]):
        with pytest.raises(PullError, match="1b9c") as caught:
            await remove(bench, image.digest)
        assert (caught.value.reason, caught.value.permanent) == ("ImageInUse", False)
        assert (await bench.presence(reference)).present
    async with container_on(bench, image.chain_ids[0]):
        # A container of an image that shares the base keeps the base, and nothing else.
        assert (await remove(bench, image.digest)).records
        assert await chains(bench) == {image.chain_ids[0]}


async def test_of_two_tags_the_first_takes_nothing_and_the_last_takes_all(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("two-tags")])
    one, two = (serve(registry, image, "removal/two-tags", tag) for tag in ("1", "2"))
    await bench.pull(one, pin=True)
    await bench.pull(two, pin=True)

    assert (await remove(bench, image.digest, frozenset({image.digest}))).kept
    changed = await unpin(bench.containerd, Reference.parse(one), image.digest, [Reference.parse(two)])
    assert changed == [one], "the other one's names, and the ID of both, stay pinned"
    assert (await bench.presence(two, pin=True)).present
    assert (await bench.presence(one)).present

    assert set((await remove(bench, image.digest)).records) == names_of(image, one, two)
    assert await records(bench) == set()
    assert await chains(bench) == set()


async def test_an_index_and_its_manifest_are_one_image(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("removal-twin")])
    index = build_index([image])
    by_index = serve(registry, index, "removal/twin")
    name = by_index.rpartition(":")[0]
    by_manifest = f"{name}@{image.digest}"
    await bench.pull(by_manifest)
    await bench.pull(by_index)

    for digest, other in ((index.digest, image.digest), (image.digest, index.digest)):
        assert (await remove(bench, digest, frozenset({other}))).kept
    for reference, digest in ((by_index, index.digest), (by_manifest, image.digest)):
        assert (await bench.presence(reference, digest)).present
    await remove(bench, image.digest)
    assert await records(bench) == set()
    assert await chains(bench) == set()


class DiedError(Exception):
    """The agent ends here."""


@pytest.mark.parametrize("who", ["agent", "daemon"])
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_whoever_dies_between_two_records_leaves_what_is_whole_and_the_next_one_ends_it(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch, after: int, who: str
) -> None:
    image = build_image([layer(f"died-{after}-{who}")])
    reference = serve(registry, image, f"removal/died-{after}-{who}")
    await bench.pull(reference, pin=True)
    deleted: list[str] = []
    delete = Images.delete

    async def dying(self: Images, name: str, *, sync: bool = False) -> None:
        if len(deleted) == after:
            raise DiedError
        await delete(self, name, sync=sync)
        deleted.append(name)

    with monkeypatch.context() as patched:
        patched.setattr(Images, "delete", dying)
        with pytest.raises(DiedError):
            await remove(bench, image.digest)
    if who == "daemon":
        await asyncio.to_thread(bench.daemon.kill)
        await start_daemon(bench.daemon)
        await answering(bench.containerd)
    left = names_of(image, reference) - set(deleted)
    assert await records(bench) == left
    assert await chains(bench) == set(image.chain_ids), "what a record leads to is whole"
    await wait_visible(bench.containerd, sorted(left), image.config.digest, FAST)

    await remove(bench, image.digest)
    assert await records(bench) == set()
    assert await chains(bench) == set()
    assert await blobs(bench) == set()


def in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
    bench: PullBench,
    gone: str,
    looked_at: str,
    happens: Callable[[], Awaitable[object]],
) -> None:
    """Once, when a removal has deleted the record `gone` and is about to look at another again."""
    get = Images.get

    async def get_after(self: Images, name: str) -> object:
        if name == looked_at and gone not in await records(bench):
            monkeypatch.undo()
            await happens()
        return await get(self, name)

    monkeypatch.setattr(Images, "get", get_after)


async def test_a_pull_by_somebody_else_in_the_middle_stops_the_removal(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("middle")])
    reference = serve(registry, image, "removal/middle")
    await bench.pull(reference)
    by_digest = digest_record(reference, image)
    pull = partial(pull_as_the_kubelet, bench.daemon, by_digest)
    in_the_middle(monkeypatch, bench, reference, by_digest, pull)
    assert (await remove(bench, image.digest)).kept == f"{by_digest} was made anew by somebody else"
    found = await bench.presence(by_digest, image.digest)
    assert found.present, found.missing


async def test_a_pin_by_somebody_else_in_the_middle_stops_the_removal(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("middle-pin")])
    reference = serve(registry, image, "removal/middle-pin")
    await bench.pull(reference)
    by_digest = digest_record(reference, image)
    pin = partial(bench.containerd.images.update_labels, by_digest, {CRI_PINNED: "pinned"})
    in_the_middle(monkeypatch, bench, reference, by_digest, pin)
    assert (await remove(bench, image.digest)).kept == f"{by_digest} was pinned anew by somebody else"
    found = await bench.presence(by_digest, image.digest)
    assert found.present, found.missing
    await bench.containerd.images.update_labels(by_digest, {CRI_PINNED: ""})
    assert not (await remove(bench, image.digest)).kept


@pytest.mark.parametrize("after", [0, 1])
async def test_what_is_wanted_before_a_record_is_deleted_stays_with_all_records_that_are_left(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The runtime is slow: the wish comes after everything was looked at."""
    image = build_image([layer(f"second-look-{after}")])
    reference = serve(registry, image, f"removal/second-look-{after}")
    await bench.pull(reference)
    names, wanted, asked = names_of(image, reference), set[str](), 0
    get = Images.get

    async def slow(self: Images, name: str) -> object:
        nonlocal asked
        if name in names and asked == after:
            wanted.add(image.digest)
        asked += 1
        return await get(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Images, "get", slow)
        verdict = await remove_image(
            bench.containerd,
            image.digest,
            snapshotter=SNAPSHOTTER,
            wanted=lambda: wanted,
            lease_labels={LEASE: OWNER},
        )
    assert verdict.kept.endswith("is wanted by now")
    assert verdict.records == ()
    left = await records(bench)
    assert len(left) == len(names) - after
    assert await chains(bench) == set(image.chain_ids)
    await wait_visible(bench.containerd, sorted(left), image.config.digest, FAST)


async def test_whose_the_lease_of_a_collection_is_can_be_told(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an agent that dies in it the next sweep removes it."""
    image = build_image([layer("collected")])
    await bench.pull(serve(registry, image, "collected"))
    made: dict[str, str] = {}
    plain = Leases.create

    async def create(self: Leases, name: str, labels: dict[str, str], seconds: float) -> Lease:
        made[name] = labels.get(LEASE, "")
        return await plain(self, name, labels, seconds)

    monkeypatch.setattr(Leases, "create", create)
    assert (await remove(bench, image.digest)).records
    assert set(made.values()) == {OWNER}


async def test_a_removal_whose_collection_fails_is_none_and_the_next_call_ends_it(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("uncollected")])
    await bench.pull(serve(registry, image, "removal/uncollected"))
    with monkeypatch.context() as patched:
        fail_collections(patched)
        # Whether its layers are still there says nothing: the runtime also collects when it likes.
        for _ in range(2):
            with pytest.raises(TimedOut):
                await remove(bench, image.digest)
            assert await records(bench) == set()
    await remove(bench, image.digest)
    assert await chains(bench) == set()
