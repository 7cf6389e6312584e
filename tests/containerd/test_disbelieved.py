"""Layers that the runtime believes and we do not: without their directory, or of a boot that ended unsynced."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import pytest

from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.layer_folders import Roots, view_folders
from imageprepull.pulling.removal import remove_image
from imageprepull.pulling.unsynced import remove_unsynced
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.snapshots import SnapshotKind
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import BOOT, OWNER, PullBench, Watched, fake_serve, layer, pull_bench, serve
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import BuiltImage, LayerSpec, build_image, build_index

CONTAINER = "1b9c"
"""The key of a container's snapshot is its ID."""


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


@asynccontextmanager
async def container_on(bench: PullBench, chain_id: str) -> AsyncIterator[None]:
    """A snapshot as a container has it, which no collection takes."""
    snapshots = bench.containerd.snapshots
    await snapshots.prepare(SNAPSHOTTER, CONTAINER, chain_id, {"containerd.io/gc.root": "now"})
    try:
        yield
        found = await snapshots.stat(SNAPSHOTTER, CONTAINER)
        assert found is not None
        assert found.kind is SnapshotKind.ACTIVE
    finally:
        await snapshots.remove(SNAPSHOTTER, CONTAINER)


def snapshots_root(bench: PullBench) -> Path:
    return bench.daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}"


@asynccontextmanager
async def restarted(bench: PullBench) -> AsyncIterator[PullBench]:
    """As an agent that has just started: nothing is known of where chains are."""
    async with pull_bench(bench.containerd, bench.daemon) as later:
        yield later


async def folders_of(bench: PullBench, chain_id: str) -> list[Path]:
    """The directories of a chain, top first."""
    root = snapshots_root(bench)
    leased = bench.containerd.with_lease("look")
    await leased.leases.create("look", {}, 60)
    mounts = await leased.snapshots.view(SNAPSHOTTER, "look", chain_id)
    await leased.snapshots.remove(SNAPSHOTTER, "look")
    await leased.leases.delete("look")
    return view_folders(mounts, Roots(PurePosixPath(root), root))


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_chain_without_a_directory_is_missing_and_is_made_anew(
    bench: PullBench, registry: DockerRegistry, lost: int
) -> None:
    image = build_image([layer(f"lost-{number}") for number in range(3)])
    shared = build_image([layer("lost-0"), layer("lost-other")])
    reference = serve(registry, image, f"lost/{lost}")
    other = serve(registry, shared, f"lost/other-{lost}")
    await bench.pull(reference)
    await bench.pull(other)
    assert (await bench.presence(reference)).present
    folder = (await folders_of(bench, image.chain_ids[-1]))[2 - lost]
    shutil.move(folder, folder.with_name("gone"))

    missing = await bench.presence(reference)
    assert (missing.present, missing.missing) == (
        False,
        f"the directory of the snapshot {image.chain_ids[lost]}",
    )
    assert (await bench.presence(other)).present is (lost > 0), "it shares the lowest layer only"
    outcome = await bench.pull(reference)
    states = [str(found.state) for found in outcome.layers]
    assert states == ["Exists"] * lost + ["Applied"] * (3 - lost)
    assert (await bench.presence(reference)).present
    assert all(folder.is_dir() for folder in await folders_of(bench, image.chain_ids[-1]))


@pytest.mark.parametrize("lost", [0, 1])
async def test_an_agent_that_never_saw_the_directory_misses_it_all_the_same(
    bench: PullBench, registry: DockerRegistry, lost: int
) -> None:
    """Of a snapshot without a directory the runtime gives no view."""
    image = build_image([layer("unseen-0"), layer("unseen-1")])
    reference = serve(registry, image, f"unseen/{lost}")
    await bench.pull(reference)
    shutil.rmtree((await folders_of(bench, image.chain_ids[-1]))[1 - lost])
    async with restarted(bench) as fresh:
        missing = (await fresh.presence(reference)).missing
        assert missing == f"the directory of the snapshot {image.chain_ids[lost]}"
        outcome = await fresh.pull(reference)
        assert [str(found.state) for found in outcome.layers] == ["Exists"] * lost + ["Applied"] * (2 - lost)
        assert (await fresh.presence(reference)).present


async def test_a_new_image_on_a_base_without_a_directory_gets_a_new_base(
    bench: PullBench, registry: DockerRegistry
) -> None:
    old, new = (build_image([layer("base-lost"), layer(f"base-lost-{which}")]) for which in ("old", "new"))
    await bench.pull(serve(registry, old, "base-lost/old"))
    shutil.rmtree((await folders_of(bench, old.chain_ids[-1]))[1])
    reference = serve(registry, new, "base-lost/new")
    outcome = await bench.pull(reference)
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert (await bench.presence(reference)).present


async def test_a_chain_without_any_directory_is_made_anew_at_one_go(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer(f"none-{number}") for number in range(8)])
    reference = serve(registry, image, "none/left")
    await bench.pull(reference)
    for folder in await folders_of(bench, image.chain_ids[-1]):
        shutil.rmtree(folder.parent)
    async with restarted(bench) as later:
        missing = await later.presence(reference)
        assert missing.missing == f"the directory of the snapshot {image.chain_ids[0]}"
        outcome = await later.pull(reference)
    assert [str(found.state) for found in outcome.layers] == ["Applied"] * 8
    assert (await bench.presence(reference)).present


async def test_an_image_on_a_base_without_a_directory_that_is_in_use_fails_with_the_user(
    bench: PullBench, registry: DockerRegistry
) -> None:
    base = [layer("taken-0"), layer("taken-1")]
    image, more = build_image(base), build_image([*base, layer("taken-more")])
    wanted = serve(registry, more, "taken/more")
    await bench.pull(serve(registry, image, "taken/1"))
    async with container_on(bench, image.chain_ids[-1]):
        folder = (await folders_of(bench, image.chain_ids[-1]))[0]
        shutil.move(folder, folder.with_name("gone"))
        async with restarted(bench) as later:
            with pytest.raises(PullError, match=CONTAINER) as caught:
                await later.pull(wanted)
        assert caught.value.reason == "BrokenChain"
    assert [str(found.state) for found in (await bench.pull(wanted)).layers] == [
        "Exists",
        "Applied",
        "Applied",
    ]


async def test_a_directory_that_goes_while_the_next_layer_downloads_is_made_anew(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    base = [layer("vanishing-0")]
    image, more = build_image(base), build_image([*base, layer("vanishing-1", 400_000)])
    await bench.pull(fake_serve(fake, image, "base"))
    release = asyncio.Event()
    fake.faults[more.layers[1].blob.digest] = [Fault(hold_after=1000, release=release)]
    reference = fake_serve(fake, more, "more")
    progress = Watched(reference)
    pulling = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda found: found.states() == ["Exists", "Downloading"])
    shutil.rmtree((await folders_of(bench, image.chain_ids[0]))[0])
    release.set()
    outcome = await pulling
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert (await bench.presence(reference)).present


async def test_an_emptied_directory_is_missing_and_a_layer_without_files_is_not(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("emptied-0"), LayerSpec({}), layer("emptied-2")])
    reference = serve(registry, image, "emptied/1")
    await bench.pull(reference)
    found = await bench.presence(reference)
    assert found.present, found.missing
    top, _, bottom = await folders_of(bench, image.chain_ids[-1])
    for folder, chain_id in ((top, image.chain_ids[2]), (bottom, image.chain_ids[0])):
        for entry in folder.iterdir():
            shutil.rmtree(entry)
        found = await bench.presence(reference)
        assert found.missing == f"the directory of the snapshot {chain_id}"
    outcome = await bench.pull(reference)
    assert [str(found.state) for found in outcome.layers] == ["Applied"] * 3
    found = await bench.presence(reference)
    assert found.present, found.missing


async def test_directories_that_cannot_be_seen_from_here_prove_nothing(
    bench: PullBench, registry: DockerRegistry, tmp_path: Path
) -> None:
    """A command in a container that was given the runtime's socket alone must not remove the node's images."""
    image = build_image([layer("unseen-0"), layer("unseen-1")])
    reference = serve(registry, image, "unseen/1")
    await bench.pull(reference)
    blind = ChainFolders(tmp_path / "not-mounted")
    blind._roots = Roots(PurePosixPath(snapshots_root(bench)), tmp_path / "not-mounted")
    assert await blind.broken(bench.containerd, SNAPSHOTTER, image.chain_ids, {}) == []


async def test_a_broken_chain_that_a_container_uses_is_reported_and_left(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("used-0"), layer("used-1")])
    reference = serve(registry, image, "broken/used")
    await bench.pull(reference)
    async with container_on(bench, image.chain_ids[-1]):
        shutil.rmtree((await folders_of(bench, image.chain_ids[-1]))[1])
        for _ in range(2):
            with pytest.raises(PullError, match=CONTAINER) as caught:
                await bench.pull(reference)
            assert caught.value.reason == "BrokenChain"
        assert not (await bench.presence(reference)).present
    await bench.pull(reference)
    assert (await bench.presence(reference)).present


async def test_an_unsynced_layer_that_a_container_uses_is_reported_and_replaced_when_it_is_free(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("unsynced-0"), layer("unsynced-1")])
    reference = serve(registry, image, "unsynced/used")
    await bench.pull(reference)
    async with container_on(bench, image.chain_ids[-1]):
        for chain_id in image.chain_ids:
            await bench.containerd.snapshots.update_labels(
                SNAPSHOTTER, chain_id, {"imageprepull.io/unsynced": "another boot"}
            )
        with pytest.raises(PullError, match=CONTAINER) as caught:
            await bench.pull(reference)
        assert (caught.value.reason, caught.value.permanent) == ("UnsyncedInUse", False)
    outcome = await bench.pull(reference)
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert (await bench.presence(reference)).present


async def with_a_forgotten_base(
    bench: PullBench, registry: DockerRegistry, name: str
) -> tuple[str, BuiltImage]:
    """An image whose base was also another's, which is gone.

    The runtime's collection does not tell a parent of its child, and `Remove` of the parent then fails for ever.
    """
    gone, image = (build_image([layer(name), layer(f"{name}-{which}")]) for which in ("gone", "stays"))
    await bench.pull(serve(registry, gone, f"{name}/gone"))
    reference = serve(registry, image, f"{name}/stays")
    await bench.pull(reference)
    await remove_image(
        bench.containerd, gone.digest, snapshotter=SNAPSHOTTER, wanted=lambda: (), lease_labels={}
    )
    assert await bench.containerd.snapshots.stat(SNAPSHOTTER, gone.chain_ids[-1]) is None
    return reference, image


@pytest.mark.parametrize("keep", [False, True])
async def test_a_layer_whose_other_child_the_runtime_has_collected_is_replaced_all_the_same(
    bench: PullBench, registry: DockerRegistry, keep: bool
) -> None:
    reference, image = await with_a_forgotten_base(bench, registry, f"forgotten-{int(keep)}")
    shutil.rmtree((await folders_of(bench, image.chain_ids[-1]))[1])

    outcome = await bench.pull(reference, keep_lease_on_failure=keep)
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert outcome.bytes_downloaded == 0, "its blobs are not collected with it"
    assert (await bench.presence(reference)).present
    assert all(folder.is_dir() for folder in await folders_of(bench, image.chain_ids[-1]))


async def test_unsynced_layers_of_which_the_runtime_has_collected_a_child_are_removed_at_the_start(
    bench: PullBench, registry: DockerRegistry
) -> None:
    _, image = await with_a_forgotten_base(bench, registry, "forgotten-unsynced")
    for chain_id in image.chain_ids:
        await bench.containerd.snapshots.update_labels(
            SNAPSHOTTER, chain_id, {"imageprepull.io/unsynced": "another boot"}
        )
    removed = await remove_unsynced(bench.containerd, SNAPSHOTTER, BOOT, {LEASE: OWNER})
    assert (removed.snapshots, removed.in_use) == (image.chain_ids[::-1], {})
    assert await bench.containerd.snapshots.list(SNAPSHOTTER) == []
    assert await bench.containerd.images.list() == []


@pytest.mark.parametrize("holds", ["a snapshot", "a lease"])
async def test_what_a_dead_pull_of_the_runtime_holds_is_replaced_when_its_lease_has_gone(
    bench: PullBench, registry: DockerRegistry, holds: str
) -> None:
    name = f"dead-{holds.rpartition(' ')[2]}"
    reference, image = await with_a_forgotten_base(bench, registry, name)
    base = (await folders_of(bench, image.chain_ids[-1]))[1]
    theirs = bench.containerd.with_lease("theirs")
    await theirs.leases.create("theirs", {}, 86400)
    if holds == "a snapshot":
        await theirs.snapshots.prepare(SNAPSHOTTER, "extract-77-Ab1x sha256:x", image.chain_ids[0], {})
    else:
        await theirs.leases.add_resource("theirs", f"snapshots/{SNAPSHOTTER}", image.chain_ids[0])
    shutil.rmtree(base)
    for _ in range(2):
        with pytest.raises(PullError) as caught:
            await bench.pull(reference, keep_lease_on_failure=True)
        assert (caught.value.reason, caught.value.permanent) == ("BrokenChain", False)
        assert ("unpacks on it (snapshot extract-77" in caught.value.message) is (holds == "a snapshot")
        assert "pods" not in caught.value.message

    await theirs.leases.delete("theirs", sync=True)
    outcome = await bench.pull(reference, keep_lease_on_failure=True)
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]
    assert (await bench.presence(reference)).present


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("which", ["config", "manifest", "index"])
async def test_a_damaged_document_is_missing_and_is_mended(
    bench: PullBench, registry: DockerRegistry, damage: Callable[[Path], None], which: str
) -> None:
    image = build_image([layer("damaged-0")])
    index = build_index([image])
    reference = serve(registry, index, f"damaged/{which}-{damage.__name__}")
    await bench.pull(reference)
    digest = {"config": image.config.digest, "manifest": image.digest, "index": index.digest}[which]
    blobs = bench.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    damage(blobs / digest.removeprefix("sha256:"))

    found = await bench.presence(reference)
    assert (found.present, found.missing) == (False, f"the content {digest}")
    outcome = await bench.pull(reference)
    assert outcome.bytes_downloaded == 0
    assert (await bench.presence(reference)).present


@pytest.mark.parametrize("which", ["config", "manifest", "index"])
async def test_a_document_without_the_label_that_keeps_what_it_names_is_missing_and_is_mended(
    bench: PullBench, registry: DockerRegistry, which: str
) -> None:
    image = build_image([layer("unlabelled-0")])
    index = build_index([image])
    reference = serve(registry, index, f"unlabelled/{which}")
    await bench.pull(reference)
    digest = {"config": image.config.digest, "manifest": image.digest, "index": index.digest}[which]
    content = bench.containerd.content
    info = await content.info(digest)
    assert info is not None
    # Held meanwhile, or the runtime would collect what nothing names any more.
    async with bench.held(content=(image.digest, image.config.digest), snapshots=image.chain_ids[-1:]):
        await content.update_labels(digest, {key: "" for key in info.labels if "/gc.ref." in key})

        found = await bench.presence(reference)
        assert not found.present
        assert found.missing.startswith(f"the label on {digest} that keeps sha256:")
        outcome = await bench.pull(reference)
    assert outcome.bytes_downloaded == 0
    assert (await bench.presence(reference)).present


async def test_a_manifest_without_the_labels_that_keep_its_blobs_is_mended_before_they_are_collected(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("unkept-0"), layer("unkept-1")])
    reference = serve(registry, image, "unkept/1")
    await bench.pull(reference)
    content = bench.containerd.content

    async def unlabel() -> None:
        info = await content.info(image.digest)
        assert info is not None
        await content.update_labels(
            image.digest, {key: "" for key in info.labels if "gc.ref.content.l." in key}
        )

    # Something else has them in use for now.
    async with bench.held(content=[built.blob.digest for built in image.layers]):
        await unlabel()
        found = await bench.presence(reference, keep_layers=True)
        assert found.missing == f"the label on {image.digest} that keeps {image.layers[0].blob.digest}", (
            "they are to be kept, and are there"
        )
        assert (await bench.presence(reference)).present, "where they are not to be kept nothing is missing"
        outcome = await bench.pull(reference)
        assert outcome.bytes_downloaded == 0
    assert [await content.info(built.blob.digest) is not None for built in image.layers] == [True, True]
    found = await bench.presence(reference, keep_layers=True)
    assert found.present, found.missing

    await unlabel()
    await collect_garbage(bench.containerd)
    assert await content.info(image.layers[0].blob.digest) is None
    found = await bench.presence(reference, keep_layers=True)
    assert found.present, "nobody who uses the image needs what is gone"
