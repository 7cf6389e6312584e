"""Snapshots, extraction and leases on real daemons: what a chain is built with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import (
    AlreadyExists,
    LeaseGone,
    NotFound,
    PreconditionFailed,
    RuntimeFault,
)
from imageprepull.runtime.labels import SNAPSHOT_REF
from imageprepull.runtime.leases import LeasedResource
from imageprepull.runtime.snapshots import SnapshotInfo, SnapshotKind
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.images import BuiltLayer, LayerSpec, build_layer

CHAIN = "sha256:" + "c" * 64


def describe(layer: BuiltLayer) -> Descriptor:
    return Descriptor(layer.blob.media_type, layer.blob.digest, layer.blob.size)


async def apply(containerd: Containerd, layer: BuiltLayer, parent: str, name: str) -> None:
    """Build one layer of a chain, as a pull does."""
    await containerd.content.put(f"layer-{layer.blob.digest}", describe(layer), layer.blob.read(), {})
    key = f"extract-1 {name}"
    mounts = await containerd.snapshots.prepare(SNAPSHOTTER, key, parent, {SNAPSHOT_REF: name})
    applied = await containerd.diff.apply(describe(layer), mounts)
    assert applied.digest == layer.diff_id
    await containerd.snapshots.commit(SNAPSHOTTER, name, key, {SNAPSHOT_REF: name})


async def commit_empty(containerd: Containerd, name: str, labels: dict[str, str] | None = None) -> None:
    await containerd.snapshots.prepare(SNAPSHOTTER, f"key-{name}", "", {})
    await containerd.snapshots.commit(SNAPSHOTTER, name, f"key-{name}", labels or {})


def only_directory(daemon: ContainerdDaemon, file: str) -> Path:
    root = daemon.root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    (found,) = root.glob(f"*/fs/{file}")
    return found


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
async def test_layers_are_extracted_onto_each_other(
    leased: Containerd, daemon: ContainerdDaemon, compression: str
) -> None:
    below = build_layer(LayerSpec({f"{compression}/below": b"1"}, compression))
    above = build_layer(LayerSpec({f"{compression}/above": b"2"}, compression))
    await apply(leased, below, "", CHAIN)
    await apply(leased, above, CHAIN, CHAIN + "2")
    stat = await leased.snapshots.stat(SNAPSHOTTER, CHAIN + "2")
    assert stat is not None
    assert 0 < time.time_ns() - stat.created < 60 * 10**9
    expected = SnapshotInfo(CHAIN + "2", CHAIN, SnapshotKind.COMMITTED, {SNAPSHOT_REF: CHAIN + "2"})
    assert replace(stat, created=0) == expected
    assert only_directory(daemon, f"{compression}/above").read_bytes() == b"2"
    usage = await leased.snapshots.usage(SNAPSHOTTER, CHAIN)
    assert usage.inodes >= 2
    assert usage.size > 0


async def test_mounts_tell_bind_below_and_overlay_above(leased: Containerd) -> None:
    await commit_empty(leased, CHAIN)
    (bottom,) = await leased.snapshots.prepare(SNAPSHOTTER, "bottom", "", {})
    (upper,) = await leased.snapshots.prepare(SNAPSHOTTER, "upper", CHAIN, {})
    assert bottom.type == "bind"
    assert upper.type == "overlay"
    assert any(option.startswith("upperdir=") for option in upper.options)
    assert await leased.snapshots.mounts(SNAPSHOTTER, "upper") == [upper]
    for key in ("bottom", "upper"):
        await leased.snapshots.remove(SNAPSHOTTER, key)


async def test_missing_snapshot_is_none_and_its_changes_are_not_found(leased: Containerd) -> None:
    assert await leased.snapshots.stat(SNAPSHOTTER, CHAIN) is None
    with pytest.raises(NotFound):
        await leased.snapshots.remove(SNAPSHOTTER, CHAIN)
    with pytest.raises(NotFound):
        await leased.snapshots.mounts(SNAPSHOTTER, CHAIN)
    with pytest.raises(NotFound):
        await leased.snapshots.commit(SNAPSHOTTER, CHAIN, "no such key", {})
    with pytest.raises(NotFound):
        await leased.snapshots.prepare(SNAPSHOTTER, "key", CHAIN, {})
    with pytest.raises(NotFound):
        await leased.snapshots.update_labels(SNAPSHOTTER, CHAIN, {"a": "b"})


async def test_unknown_snapshotter_is_a_fault_that_names_it(leased: Containerd) -> None:
    with pytest.raises(RuntimeFault, match="nydus"):
        await leased.snapshots.prepare("nydus", "key", "", {})


async def test_prepare_finds_the_chain_that_the_label_names(leased: Containerd) -> None:
    await commit_empty(leased, CHAIN)
    with pytest.raises(AlreadyExists):
        await leased.snapshots.prepare(SNAPSHOTTER, "extract-2", "", {SNAPSHOT_REF: CHAIN})
    assert await leased.snapshots.stat(SNAPSHOTTER, "extract-2") is None


async def test_existing_chain_survives_the_other_lease_only_by_add_resource(containerd: Containerd) -> None:
    """1.6.20 does not lease on AlreadyExists, 2.4 does; AddResource, then Stat, is right on both."""
    resource = f"snapshots/{SNAPSHOTTER}"
    for lease in ("theirs", "ours"):
        await containerd.leases.create(lease, {}, 600)
    await commit_empty(containerd.with_lease("theirs"), CHAIN)
    with pytest.raises(AlreadyExists):
        await containerd.with_lease("ours").snapshots.prepare(SNAPSHOTTER, "mine", "", {SNAPSHOT_REF: CHAIN})
    leased = LeasedResource(resource, CHAIN) in await containerd.leases.resources("ours")
    assert leased == (not containerd.version.startswith("1.6.20"))
    await containerd.leases.add_resource("ours", resource, CHAIN)
    assert await containerd.snapshots.stat(SNAPSHOTTER, CHAIN) is not None
    await containerd.leases.delete("theirs", sync=True)
    assert await containerd.snapshots.stat(SNAPSHOTTER, CHAIN) is not None
    await containerd.leases.delete("ours", sync=True)
    assert await containerd.snapshots.stat(SNAPSHOTTER, CHAIN) is None


async def test_add_resource_of_what_does_not_exist_succeeds(containerd: Containerd) -> None:
    """Why Stat comes after AddResource and not before."""
    await containerd.leases.create("ours", {}, 600)
    await containerd.leases.add_resource("ours", f"snapshots/{SNAPSHOTTER}", CHAIN)
    assert await containerd.snapshots.stat(SNAPSHOTTER, CHAIN) is None
    await containerd.leases.delete("ours")


async def test_second_commit_of_a_chain_leaves_its_key_to_be_removed(leased: Containerd) -> None:
    await commit_empty(leased, CHAIN)
    await leased.snapshots.prepare(SNAPSHOTTER, "late", "", {})
    with pytest.raises(AlreadyExists):
        await leased.snapshots.commit(SNAPSHOTTER, CHAIN, "late", {})
    await leased.snapshots.remove(SNAPSHOTTER, "late")


async def test_layer_that_does_not_fit_its_media_type_is_refused(leased: Containerd) -> None:
    data = b"neither tar nor gzip " * 100
    layer = build_layer(LayerSpec(tar=data, compression="plain"))
    await leased.content.put("layer-bad", describe(layer), data, {})
    mounts = await leased.snapshots.prepare(SNAPSHOTTER, "bad", "", {})
    with pytest.raises(RuntimeFault, match=layer.blob.digest):
        await leased.diff.apply(describe(layer), mounts)
    await leased.snapshots.remove(SNAPSHOTTER, "bad")


async def test_extraction_of_a_blob_that_is_not_there_is_not_found(leased: Containerd) -> None:
    layer = build_layer(LayerSpec({"never": b"put"}))
    mounts = await leased.snapshots.prepare(SNAPSHOTTER, "none", "", {})
    with pytest.raises(NotFound):
        await leased.diff.apply(describe(layer), mounts)
    await leased.snapshots.remove(SNAPSHOTTER, "none")


async def test_parent_goes_after_its_children(leased: Containerd) -> None:
    await commit_empty(leased, CHAIN)
    await leased.snapshots.prepare(SNAPSHOTTER, "child", CHAIN, {})
    with pytest.raises(PreconditionFailed):
        await leased.snapshots.remove(SNAPSHOTTER, CHAIN)
    await leased.snapshots.remove(SNAPSHOTTER, "child")
    await leased.snapshots.remove(SNAPSHOTTER, CHAIN)


async def test_labels_of_snapshots_are_filtered_by_and_cleared(leased: Containerd) -> None:
    await commit_empty(leased, CHAIN, {"imageprepull.io/unsynced": "boot-1", "keep": "1"})
    await commit_empty(leased, CHAIN + "2")
    (found,) = await leased.snapshots.list(SNAPSHOTTER, ['labels."imageprepull.io/unsynced"'])
    assert found.name == CHAIN
    cleared = await leased.snapshots.update_labels(SNAPSHOTTER, CHAIN, {"imageprepull.io/unsynced": ""})
    assert cleared.labels == {"keep": "1"}
    assert await leased.snapshots.list(SNAPSHOTTER, ['labels."imageprepull.io/unsynced"']) == []
    assert len(await leased.snapshots.list(SNAPSHOTTER)) == 2


async def test_lease_holds_what_is_made_under_it(containerd: Containerd) -> None:
    await containerd.leases.create("ours", {"imageprepull.io/lease": "node-a"}, 600)
    ours = containerd.with_lease("ours")
    assert (ours.lease, ours.namespace, containerd.lease) == ("ours", "k8s.io", "")
    await ours.snapshots.prepare(SNAPSHOTTER, "active", "", {})
    await commit_empty(ours, CHAIN)
    await collect_garbage(containerd)
    assert await containerd.snapshots.stat(SNAPSHOTTER, "active") is not None
    assert set(await containerd.leases.resources("ours")) == {
        LeasedResource(f"snapshots/{SNAPSHOTTER}", name) for name in ("active", CHAIN)
    }
    (found,) = await containerd.leases.list(['labels."imageprepull.io/lease"==node-a'])
    assert found.id == "ours"
    assert await containerd.leases.list(['labels."imageprepull.io/lease"==node-b']) == []
    await containerd.leases.delete("ours", sync=True)
    assert await containerd.snapshots.list(SNAPSHOTTER) == []


async def test_expired_lease_holds_until_a_collection_runs(containerd: Containerd) -> None:
    await containerd.leases.create("short", {}, 1)
    await commit_empty(containerd.with_lease("short"), CHAIN)
    await asyncio.sleep(1.5)  # the daemon's own clock decides
    assert [lease.id for lease in await containerd.leases.list()] == ["short"]
    await collect_garbage(containerd)
    assert await containerd.leases.list() == []
    assert await containerd.snapshots.stat(SNAPSHOTTER, CHAIN) is None


async def test_lost_lease_is_told_from_a_missing_object(containerd: Containerd) -> None:
    gone = containerd.with_lease("never-created")
    with pytest.raises(LeaseGone):
        await gone.snapshots.prepare(SNAPSHOTTER, "leaseless", "", {})
    with pytest.raises(LeaseGone):
        await containerd.leases.add_resource("never-created", "content", CHAIN)
    with pytest.raises((LeaseGone, NotFound)):
        await containerd.leases.delete("never-created")


async def test_same_lease_twice_already_exists(containerd: Containerd) -> None:
    await containerd.leases.create("twice", {}, 60)
    with pytest.raises(AlreadyExists):
        await containerd.leases.create("twice", {}, 60)
    await containerd.leases.delete("twice")


async def test_cancelled_creation_has_happened_or_never_will(leased: Containerd) -> None:
    """Else a caller that cleans up finds nothing, and the daemon makes it a moment later."""
    for number in range(40):
        key = f"cancelled-{number}"
        call = asyncio.create_task(leased.snapshots.prepare(SNAPSHOTTER, key, "", {}))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if await leased.snapshots.stat(SNAPSHOTTER, key) is not None:
            await leased.snapshots.remove(SNAPSHOTTER, key)
    assert await leased.snapshots.list(SNAPSHOTTER) == []
