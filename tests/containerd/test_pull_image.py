"""Whole images from a real registry into real daemons: what arrives, under which names, and what it costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling import durability
from imageprepull.pulling.records import pin, unpin
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import Content
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import PullBench, Watched, layer, pull_bench, serve
from tests.testbed import binaries
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import build_image, build_index


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


def crictl(daemon: ContainerdDaemon, subcommand: str, *arguments: str) -> Any:
    endpoints = ["--runtime-endpoint", daemon.address, "--image-endpoint", daemon.address]
    # crictl takes options only before its arguments.
    command = [
        str(binaries.path("crictl")),
        *endpoints,
        "--timeout",
        "20s",
        subcommand,
        "-o",
        "json",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
async def test_every_kind_of_image_arrives_unpacked(
    bench: PullBench, registry: DockerRegistry, family: str, compression: str
) -> None:
    if (family, compression, bench.daemon.version) == ("docker", "zstd", "1.6"):
        pytest.skip("containerd 1.6 has no processor for docker's zstd layers")
    specs = [layer(f"{family}-{compression}-{n}", family=family, compression=compression) for n in range(3)]
    image = build_image(specs, family=family)
    progress = Watched("x")
    outcome = await bench.pull(serve(registry, image, f"kinds/{family}-{compression}"), progress)
    assert outcome.digest == image.digest
    assert outcome.config_digest == image.config.digest
    assert [found.chain_id for found in outcome.layers] == image.chain_ids
    assert progress.states() == ["Applied"] * 3
    assert progress.phase == "Done"
    assert outcome.bytes_downloaded == sum(built.blob.size for built in image.layers)
    for chain_id in image.chain_ids:
        assert await bench.containerd.snapshots.stat(SNAPSHOTTER, chain_id) is not None


async def test_the_cri_shows_it_by_tag_digest_and_id_and_pinned(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("shown")])
    reference = serve(registry, image, "cri/shown")
    outcome = await bench.pull(reference, pin=True)
    name = reference.rpartition(":")[0]
    listed = next(i for i in crictl(bench.daemon, "images")["images"] if i["id"] == image.config.digest)
    assert listed["repoTags"] == [reference]
    assert listed["repoDigests"] == [f"{name}@{image.digest}"]
    for asked in (reference, f"{name}@{image.digest}", image.config.digest):
        assert crictl(bench.daemon, "inspecti", asked)["status"]["id"] == image.config.digest
    can_pin = bench.daemon.version != "1.6"
    assert listed.get("pinned", False) is can_pin
    assert outcome.pinned is can_pin


async def test_of_an_index_the_manifest_of_the_platform_is_taken(
    bench: PullBench, registry: DockerRegistry
) -> None:
    images = [build_image([layer(name)], architecture=name) for name in ("arm64", "amd64", "s390x")]
    index = build_index(images)
    outcome = await bench.pull(serve(registry, index, "index/three"))
    assert outcome.digest == index.digest
    assert outcome.config_digest == images[1].config.digest
    record = await bench.containerd.images.get(images[1].config.digest)
    assert record is not None
    assert record.target.digest == index.digest


async def test_a_blob_that_is_two_layers_is_fetched_once_and_applied_twice(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("same"), layer("between"), layer("same")])
    outcome = await bench.pull(serve(registry, image, "double/layer"))
    sizes = {built.blob.digest: built.blob.size for built in image.layers}
    assert outcome.bytes_downloaded == sum(sizes.values())
    assert [str(found.state) for found in outcome.layers] == ["Applied"] * 3


async def test_an_image_by_digest_has_no_tag_record(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("by-digest")])
    name = serve(registry, image, "by/digest").rpartition(":")[0]
    await bench.pull(f"{name}@{image.digest}")
    names = {record.name for record in await bench.containerd.images.list()}
    assert names == {image.config.digest, f"{name}@{image.digest}"}


async def test_an_image_without_layers_is_an_image(bench: PullBench, registry: DockerRegistry) -> None:
    reference = serve(registry, build_image([]), "no/layers")
    await bench.pull(reference)
    assert (await bench.presence(reference)).present


async def test_everything_survives_the_garbage_collector(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("gc-0"), layer("gc-1")])
    index = build_index([image, build_image([layer("other")], architecture="arm64")])
    reference = serve(registry, index, "gc/survives")
    await bench.pull(reference)
    await collect_garbage(bench.containerd)
    assert (await bench.presence(reference)).present
    for built in image.layers:
        assert await bench.containerd.content.info(built.blob.digest) is not None, "blobs are kept"


async def test_without_kept_blobs_the_layers_go_and_the_image_stays(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("drop-0"), layer("drop-1")])
    reference = serve(registry, image, "gc/drops")
    await bench.pull(reference, keep_blobs="never")
    await collect_garbage(bench.containerd)
    assert (await bench.presence(reference)).present
    for built in image.layers:
        assert await bench.containerd.content.info(built.blob.digest) is None


async def test_documents_left_without_labels_by_others_are_mended(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("unlabelled")])
    reference = serve(registry, image, "gc/unlabelled")
    await bench.containerd.leases.create("somebody-else", {}, 60)
    other = bench.containerd.with_lease("somebody-else")
    for blob in (image.manifest, image.config):
        descriptor = Descriptor(blob.media_type, blob.digest, blob.size)
        await other.content.put(f"manifest-{blob.digest}", descriptor, blob.read(), {})
    await bench.pull(reference)
    await bench.containerd.leases.delete("somebody-else")
    await collect_garbage(bench.containerd)
    assert (await bench.presence(reference)).present


async def test_only_the_layers_above_an_existing_chain_are_fetched(
    bench: PullBench, registry: DockerRegistry
) -> None:
    base = [layer("base-0"), layer("base-1")]
    await bench.pull(serve(registry, build_image(base), "shared/base"))
    image = build_image([*base, layer("on-top")])
    progress = Watched("x")
    outcome = await bench.pull(serve(registry, image, "shared/child"), progress)
    assert progress.states() == ["Exists", "Exists", "Applied"]
    assert outcome.bytes_downloaded == image.layers[2].blob.size


async def test_a_present_image_is_pinned_later_without_a_registry(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("pin-later")])
    repository = "pin/later"
    reference = serve(registry, image, repository)
    await bench.pull(reference)
    found = await bench.presence(reference, pin=True)
    assert (found.present, found.complete) == (False, True)
    registry.stop()
    try:
        await bench.pull(reference, digest=found.digest, pin=True)
    finally:
        registry.start()
    assert (await bench.presence(reference, pin=True)).present


async def test_documents_that_the_store_has_are_read_once_and_those_that_it_had_not_never(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("read-once")])
    reference = serve(registry, image, "read/once")
    read: list[str] = []
    plain = Content.read

    async def noted(self: Content, digest: str) -> bytes:
        read.append(digest)
        return await plain(self, digest)

    monkeypatch.setattr(Content, "read", noted)
    await bench.pull(reference)
    assert read == []
    await bench.pull(reference, pin=True)
    assert sorted(read) == sorted([image.digest, image.config.digest])


async def test_an_image_that_others_imported_under_its_tag_only_is_pinned_without_a_registry(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("pin-imported")])
    reference = serve(registry, image, "pin/imported")
    await bench.pull(reference)
    await bench.containerd.images.delete(f"{reference.rpartition(':')[0]}@{image.digest}")
    found = await bench.presence(reference, pin=True)
    assert (found.present, found.complete) == (False, True)
    registry.stop()
    try:
        await bench.pull(reference, digest=found.digest, pin=True)
    finally:
        registry.start()
    assert (await bench.presence(reference, found.digest, pin=True)).present


async def test_layers_carry_the_boot_until_they_are_on_disk(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`before`: no record stands over an unsynced layer. `background`: visible first, synced afterwards."""

    async def unsynced() -> int:
        return len(await bench.containerd.snapshots.list(SNAPSHOTTER, ['labels."imageprepull.io/unsynced"']))

    def hold(descriptor: int) -> None:
        assert written.wait(20)
        real(descriptor)

    real, written = durability.sync_file_system, threading.Event()
    monkeypatch.setattr(durability, "sync_file_system", hold)
    late = build_image([layer("sync-2")])
    await bench.pull(serve(registry, late, "sync/after"), until="ready")
    assert await unsynced() == 1
    written.set()
    await bench.puller.finish()
    assert await unsynced() == 0

    written.clear()
    reference = serve(registry, build_image([layer("sync-0"), layer("sync-1")]), "sync/before")
    pulling = asyncio.create_task(bench.pull(reference, sync="before", until="ready"))
    async with asyncio.timeout(60):
        while await unsynced() < 2:  # noqa: ASYNC110 - snapshots tell nobody when they come.
            await asyncio.sleep(0.01)
    assert await bench.containerd.images.get(reference) is None
    written.set()
    await pulling
    assert await unsynced() == 0


async def test_an_image_is_unpinned_under_all_its_names(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("unpin")])
    reference = serve(registry, image, "un/pin")
    await bench.pull(reference, pin=True)
    assert (await bench.presence(reference, pin=True)).present
    changed = await unpin(bench.containerd, Reference.parse(reference), image.digest)
    name = reference.rpartition(":")[0]
    assert sorted(changed) == sorted([image.config.digest, reference, f"{name}@{image.digest}"])
    for record in await bench.containerd.images.list():
        assert "io.cri-containerd.pinned" not in record.labels
        assert record.labels["io.cri-containerd.image"] == "managed", "other labels stay"
    assert (await bench.presence(reference)).present
    assert await unpin(bench.containerd, Reference.parse(reference), image.digest) == []


async def test_an_image_is_pinned_again_as_it_is(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("pin-again")])
    reference = serve(registry, image, "pin/again")
    await bench.pull(reference, pin=True)
    before = {record.name: record for record in await bench.containerd.images.list()}
    await unpin(bench.containerd, Reference.parse(reference), image.digest)
    found = await bench.presence(reference, pin=True)
    assert (found.present, found.complete, found.our_pin) == (False, True, False)
    await pin(bench.containerd, Reference.parse(reference), image.digest, image.config.digest)
    assert {record.name: record for record in await bench.containerd.images.list()} == before
    found = await bench.presence(reference, pin=True)
    assert (found.present, found.our_pin) == (True, True)


async def test_a_record_that_vanished_is_not_made_anew_by_pinning(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("pin-vanished")])
    reference = serve(registry, image, "pin/vanished")
    await bench.pull(reference)
    await bench.containerd.images.delete(reference)
    before = await bench.containerd.images.list()
    await pin(bench.containerd, Reference.parse(reference), image.digest, image.config.digest)
    assert await bench.containerd.images.list() == before


async def test_a_pin_on_what_is_left_of_an_image_is_seen(bench: PullBench, registry: DockerRegistry) -> None:
    """The kubelet's collection would be kept from it."""
    image = build_image([layer("pin-left")])
    reference = serve(registry, image, "pin/left")
    await bench.pull(reference, pin=True)
    await bench.containerd.images.delete(reference)
    found = await bench.presence(reference, image.digest, pin=True)
    assert (found.present, found.complete, found.our_pin) == (False, False, True)
    await unpin(bench.containerd, Reference.parse(reference), image.digest)
    assert not (await bench.presence(reference, image.digest)).our_pin


async def test_a_pin_that_others_set_is_not_taken_away(bench: PullBench, registry: DockerRegistry) -> None:
    """As the sandbox image's, which the CRI itself has pinned."""
    image = build_image([layer("their-pin")])
    reference = serve(registry, image, "their/pin")
    await bench.pull(reference)
    await bench.containerd.images.update_labels(reference, {"io.cri-containerd.pinned": "pinned"})
    await bench.pull(reference, pin=True)
    assert (await bench.presence(reference, pin=True)).present
    changed = await unpin(bench.containerd, Reference.parse(reference), image.digest)
    assert sorted(changed) == sorted(
        [image.config.digest, f"{reference.rpartition(':')[0]}@{image.digest}"]
    ), "ours are"
    record = await bench.containerd.images.get(reference)
    assert record is not None
    assert record.labels["io.cri-containerd.pinned"] == "pinned"


async def test_two_digests_of_one_config_are_both_present(bench: PullBench, registry: DockerRegistry) -> None:
    """An index and its manifest are one image with one ID, whose record can point at one of them only."""
    image = build_image([layer("twin")])
    index = build_index([image])
    by_index = serve(registry, index, "twin/image")
    by_manifest = f"{by_index.rpartition(':')[0]}@{image.digest}"
    await bench.pull(by_index)
    await bench.pull(by_manifest)
    for reference, digest in ((by_index, index.digest), (by_manifest, image.digest)):
        found = await bench.presence(reference, digest)
        assert found.present, found.missing


async def test_records_of_others_are_updated_but_not_called_ours(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("theirs")])
    reference = serve(registry, image, "their/record")
    old = Descriptor(image.manifest.media_type, "sha256:" + "0" * 64, 100)
    await bench.containerd.images.create(reference, old, {"whose": "theirs"})
    await bench.pull(reference)
    record = await bench.containerd.images.get(reference)
    assert record is not None
    assert record.target.digest == image.digest
    assert record.labels["whose"] == "theirs"
    assert "imageprepull.io/managed" not in record.labels


async def test_presence_says_what_is_missing(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("part-0"), layer("part-1")])
    reference = serve(registry, image, "part/missing")
    assert "image record" in (await bench.presence(reference)).missing
    await bench.pull(reference)
    moved = await bench.presence(reference, "sha256:" + "1" * 64)
    assert not moved.present
    assert image.digest in moved.missing
    await bench.containerd.snapshots.remove(SNAPSHOTTER, image.chain_ids[1])
    broken = await bench.presence(reference)
    # A collection may come at any moment and take the lower layer too, on which nothing stands any more.
    assert any(f"snapshot {chain}" in broken.missing for chain in image.chain_ids)
    assert (broken.present, broken.complete, broken.digest) == (False, False, image.digest)
    outcome = await bench.pull(reference)
    assert outcome.layers[1].state == "Applied", "and it is repaired"
    await bench.containerd.content.delete(image.manifest.digest)
    assert image.manifest.digest in (await bench.presence(reference)).missing
    await bench.pull(reference)
    assert (await bench.presence(reference)).present
