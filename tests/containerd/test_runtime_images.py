"""Image records, what the CRI makes of them, events and discovery, on real daemons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.cri import CriImage
from imageprepull.runtime.discovery import discover
from imageprepull.runtime.errors import AlreadyExists, NotFound, Unsupported
from imageprepull.runtime.events import Event
from tests.testbed.daemon import ContainerdDaemon, containerd_daemon
from tests.testbed.images import Blob, BuiltImage, LayerSpec, build_image

NAME = "example.org/runtime/image"
# On a record without the first, the CRI writes labels and target of its own some moments later.
MANAGED = {"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}


def describe(blob: Blob) -> Descriptor:
    return Descriptor(blob.media_type, blob.digest, blob.size)


async def put_documents(containerd: Containerd) -> BuiltImage:
    """Manifest and config, which is all that the CRI looks at."""
    image = build_image([LayerSpec({"file": b"content"})])
    labels = {"containerd.io/gc.ref.content.config": image.config.digest}
    for blob, marks in ((image.config, {}), (image.manifest, labels)):
        await containerd.content.put(f"blob-{blob.digest}", describe(blob), blob.read(), marks)
    return image


async def seen_by_cri(containerd: Containerd, reference: str) -> CriImage:
    """The CRI learns of records by events: soon, but not at once."""
    async with asyncio.timeout(60):
        while (found := await containerd.cri.image_status(reference)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_record_is_created_once_then_updated_under_masks(leased: Containerd) -> None:
    first = await put_documents(leased)
    second = await put_documents(leased)
    created = await leased.images.create(f"{NAME}:1", describe(first.manifest), {**MANAGED, "theirs": "1"})
    with pytest.raises(AlreadyExists):
        await leased.images.create(f"{NAME}:1", describe(second.manifest), {"io.x/ours.y": "2"})
    assert await leased.images.get(f"{NAME}:1") == created
    updated = await leased.images.update(f"{NAME}:1", describe(second.manifest), {"io.x/ours.y": "2"})
    assert updated.target == describe(second.manifest)
    assert updated.labels == {**MANAGED, "theirs": "1", "io.x/ours.y": "2"}
    assert await leased.images.get(f"{NAME}:1") == updated


async def test_label_update_leaves_target_and_other_labels(leased: Containerd) -> None:
    image = await put_documents(leased)
    await leased.images.create(f"{NAME}:1", describe(image.manifest), {**MANAGED, "a": "1"})
    record = await leased.images.update_labels(f"{NAME}:1", {"a": ""})
    assert (record.target, record.labels) == (describe(image.manifest), MANAGED)


async def test_missing_record(containerd: Containerd) -> None:
    assert await containerd.images.get(f"{NAME}:none") is None
    with pytest.raises(NotFound):
        await containerd.images.update_labels(f"{NAME}:none", {"a": "1"})
    with pytest.raises(NotFound):
        await containerd.images.update(f"{NAME}:none", Descriptor("a/b", f"sha256:{'0' * 64}", 1), {})
    with pytest.raises(NotFound):
        await containerd.images.delete(f"{NAME}:none")
    assert await containerd.cri.image_status(f"{NAME}:none") is None


async def test_records_are_listed_by_filter(leased: Containerd) -> None:
    image = await put_documents(leased)
    for tag in ("1", "2"):
        await leased.images.create(f"{NAME}:{tag}", describe(image.manifest), {"tag": tag})
    assert [record.name for record in await leased.images.list(["labels.tag==2"])] == [f"{NAME}:2"]
    by_target = await leased.images.list([f"target.digest=={image.digest}"])
    assert {record.name for record in by_target} >= {f"{NAME}:1", f"{NAME}:2"}


async def test_three_records_make_the_image_visible_by_id_tag_and_digest(leased: Containerd) -> None:
    image = await put_documents(leased)
    names = [image.config.digest, f"{NAME}:1", f"{NAME}@{image.digest}"]
    for name in names:
        await leased.images.create(name, describe(image.manifest), MANAGED)
    for name in names:
        found = await seen_by_cri(leased, name)
        assert found.id == image.config.digest
    found = await seen_by_cri(leased, f"{NAME}@{image.digest}")
    assert found.repo_tags == (f"{NAME}:1",)
    assert found.repo_digests == (f"{NAME}@{image.digest}",)
    # 1.6.20 has no pinning at all.
    assert found.pinned == (not leased.version.startswith("1.6.20"))
    assert found in await leased.cri.list_images()
    await leased.cri.remove_image(f"{NAME}:1")
    assert await leased.images.list([f"target.digest=={image.digest}"]) == []


async def test_cri_status_and_image_file_system(containerd: Containerd, daemon: ContainerdDaemon) -> None:
    status = await containerd.cri.status()
    assert status.conditions["RuntimeReady"]
    (filesystem,) = await containerd.cri.image_fs_info()
    assert filesystem.mountpoint == str(daemon.root / "io.containerd.snapshotter.v1.overlayfs")


async def next_event(events: AsyncIterator[Event], topic: str) -> Event:
    async for event in events:
        if event.topic == topic:
            return event
    raise AssertionError("the stream of events has ended")


async def test_events_name_the_image(leased: Containerd) -> None:
    image = await put_documents(leased)
    events = leased.events.subscribe(['namespace==k8s.io,topic~="^/images/"'])
    deleted = asyncio.create_task(next_event(events, "/images/delete"))
    async with asyncio.timeout(60):
        # Nothing says when a subscription has begun, so the cause is repeated.
        while not deleted.done():
            await leased.images.create(f"{NAME}:1", describe(image.manifest), {})
            await leased.images.delete(f"{NAME}:1")
            await asyncio.wait([deleted], timeout=0.1)
    event = deleted.result()
    assert (event.namespace, event.subject) == ("k8s.io", f"{NAME}:1")
    assert event.type_url == "containerd.services.images.v1.ImageDelete"


async def test_namespaces_are_apart(daemon: ContainerdDaemon, containerd: Containerd) -> None:
    async with connect(str(daemon.socket), namespace="imageprepull-test") as other:
        await other.leases.create("elsewhere", {}, 60)
        assert await containerd.leases.list() == []
        await other.leases.delete("elsewhere")


async def test_discovery_on_either_version(containerd: Containerd, daemon: ContainerdDaemon) -> None:
    info = await discover(containerd)
    assert info.version == containerd.version
    assert info.snapshotter == "overlayfs"
    assert info.snapshotter_found == ("config" if daemon.version == "1.6" else "filesystem")
    assert info.snapshotter_root == str(daemon.root / "io.containerd.snapshotter.v1.overlayfs")
    assert info.content_root == str(daemon.root / "io.containerd.content.v1.content")
    assert ("rebase" in info.capabilities) == (daemon.version != "1.6")
    assert info.discard_unpacked_layers is False
    assert info.registry_config_path == str(daemon.certs_d)


@pytest.mark.parametrize("version", ["1.6", "2.4"])
async def test_discovery_of_another_snapshotter(version: str) -> None:
    with containerd_daemon(version, snapshotter="native", discard_unpacked_layers=True) as native:
        async with connect(native.address) as connection:
            info = await discover(connection)
    assert info.snapshotter == "native"
    assert info.snapshotter_root == str(native.root / "io.containerd.snapshotter.v1.native")
    assert info.discard_unpacked_layers is True


@pytest.mark.parametrize("version", ["1.6", "2.4"])
async def test_discovery_without_cri_falls_back_to_the_default(version: str) -> None:
    with containerd_daemon(version, cri=False) as bare:
        async with connect(bare.address) as connection:
            info = await discover(connection)
            with pytest.raises(Unsupported):
                await connection.cri.image_status("example.org/a:1")
    assert (info.snapshotter, info.snapshotter_found) == ("overlayfs", "default")
    assert info.snapshotter_root is not None
