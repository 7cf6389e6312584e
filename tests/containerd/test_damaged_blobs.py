"""Blobs that the content store has on record and whose files are damaged or gone, on both daemons and both paths."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.chain import Chain, ChainLostError
from imageprepull.pulling.damaged import Removed, remove_damaged
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNCOMPRESSED
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.staging import Staging
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.labels import SOURCE_PREFIX
from imageprepull.unpacking.workers import WorkerDied, Workers
from tests.containerd.conftest import collect_garbage
from tests.containerd.layer_trees import layer_folders
from tests.containerd.pull_bench import (
    PullBench,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
    serve,
)
from tests.containerd.test_pull_faults import changed
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import BuiltImage, build_image, sha256

SOMEBODYS = "example.com/somebodys"
HOW = ("flipped", "short", "gone")


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, path: dict[str, Any]
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, **path) as bench:
        yield bench
        await bench.assert_clean()


@pytest.fixture
async def portable(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, path="portable") as bench:
        yield bench
        await bench.assert_clean()


@pytest.fixture(params=["placed", "sent"])
def way(request: pytest.FixtureRequest, bench: PullBench) -> str:
    """How blobs come into the content store."""
    if request.param == "sent":
        send(bench)
    return str(request.param)


def send(bench: PullBench) -> None:
    bench.puller._machinery.placing._folder = None


def blob_path(bench: PullBench, digest: str) -> Path:
    blobs = bench.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    return blobs / digest.removeprefix("sha256:")


def damage(bench: PullBench, digest: str, how: str) -> None:
    path = blob_path(bench, digest)
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "flipped":
        data[len(data) // 2] ^= 0xFF
    elif how == "short":
        del data[len(data) // 2 :]
    if how != "gone":
        path.write_bytes(data)


def is_whole(bench: PullBench, digest: str) -> bool:
    path = blob_path(bench, digest)
    return path.exists() and f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest


async def break_chain(bench: PullBench, image: BuiltImage, number: int) -> None:
    """What a layer unpacked to is gone, and has to be made again."""
    folder = (await layer_folders(bench.containerd, image.chain_ids[-1]))[number]
    for found in folder.iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()


async def labels(bench: PullBench, digest: str) -> dict[str, str]:
    found = await bench.containerd.content.info(digest)
    assert found is not None
    return dict(found.labels)


@pytest.mark.parametrize("how", HOW)
async def test_a_damaged_blob_is_replaced_for_all_images_that_have_it(
    bench: PullBench, registry: DockerRegistry, way: str, how: str
) -> None:
    shared = layer(f"shared-{how}-{way}", 60_000)
    repositories = [f"damaged/{name}-{how}-{way}" for name in ("one", "two", "three")]
    images = [build_image([layer(name), shared]) for name in repositories]
    one, two, three = map(serve, [registry] * 3, images, repositories)
    for reference in (one, two):
        await bench.pull(reference)
    blob = images[0].layers[1].blob
    await bench.containerd.content.update_labels(blob.digest, {SOMEBODYS: "label"})
    before = await labels(bench, blob.digest)
    assert before[f"{SOURCE_PREFIX}{registry.host.partition(':')[0]}"] == ",".join(sorted(repositories[:2]))
    assert before[UNCOMPRESSED] == images[0].layers[1].diff_id
    records = {record.name: record.target for record in await bench.containerd.images.list()}

    damage(bench, blob.digest, how)
    await break_chain(bench, images[0], 1)
    outcome = await bench.pull(one)
    assert [str(found.state) for found in outcome.layers] == ["Exists", "Applied"]
    assert 0 < outcome.bytes_downloaded <= blob.size
    assert (await layer_files(bench, images[0]))[1] > 0

    await collect_garbage(bench.containerd)
    assert is_whole(bench, blob.digest)
    assert await labels(bench, blob.digest) == before
    assert {record.name: record.target for record in await bench.containerd.images.list()} == records
    for reference in (one, two):
        found = await bench.presence(reference, keep_layers=True)
        assert found.present, found.missing
    bench.daemon.trust(registry.host)
    await pull_as_the_kubelet(bench.daemon, three)


async def layer_files(bench: PullBench, image: BuiltImage) -> list[int]:
    folders = await layer_folders(bench.containerd, image.chain_ids[-1])
    return [sum(path.is_file() for path in folder.rglob("*")) for folder in folders]


async def test_a_damaged_blob_is_not_removed_while_another_image_brings_it(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be the damaged file, and what is removed then the whole one."""
    image = build_image([layer("brought"), layer("brought-2", 60_000)])
    reference = serve(registry, image, "damaged/brought")
    await bench.pull(reference)
    digest = image.layers[1].blob.digest
    damage(bench, digest, "flipped")
    await break_chain(bench, image, 1)
    looked: list[str] = []

    async def noted(*arguments: Any, **options: Any) -> Removed | None:
        looked.append(digest)
        return await remove_damaged(*arguments, **options)

    monkeypatch.setattr("imageprepull.pulling.layer_blobs.remove_damaged", noted)
    blobs, look = bench.puller._machinery.blobs, LayerBlobs.look
    async with AsyncExitStack() as other:

        async def look_before(self: LayerBlobs, containerd: Containerd, digests: Sequence[str]) -> None:
            await look(self, containerd, digests)
            monkeypatch.setattr(LayerBlobs, "look", look)
            await other.enter_async_context(blobs.hold(digest))

        monkeypatch.setattr(LayerBlobs, "look", look_before)
        pulling = asyncio.create_task(bench.pull(reference))
        async with asyncio.timeout(60):
            while blobs._users.get(digest, 0) < 2 and not looked:  # noqa: ASYNC110 - they tell nobody.
                await asyncio.sleep(0.01)
        assert not looked
        assert not pulling.done()
    await pulling
    assert looked == [digest]
    assert is_whole(bench, digest)
    assert (await bench.presence(reference, keep_layers=True)).present


@pytest.mark.parametrize("how", HOW)
async def test_where_no_blobs_are_kept_a_damaged_one_is_not_left_to_others(
    bench: PullBench, registry: DockerRegistry, how: str
) -> None:
    """The kubelet's own pull of another image would fail on it."""
    shared = layer(f"not-kept-{how}", 60_000)
    images = [build_image([layer(f"not-kept-{how}-{number}"), shared]) for number in range(3)]
    one, two, three = (serve(registry, image, f"damaged/n{how}{n}") for n, image in enumerate(images))
    await bench.pull(one)
    digest = images[0].layers[1].blob.digest
    damage(bench, digest, how)
    await bench.pull(two, keep_blobs="never")
    await collect_garbage(bench.containerd)
    assert is_whole(bench, digest) or await bench.containerd.content.info(digest) is None
    bench.daemon.trust(registry.host)
    await pull_as_the_kubelet(bench.daemon, three)
    assert is_whole(bench, digest)
    for reference in (one, two, three):
        found = await bench.presence(reference)
        assert found.present, found.missing


async def test_a_layer_that_the_fast_path_hands_over_is_no_exception(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    workers: Workers,
    registry: DockerRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = build_image([layer("handed-over"), layer("handed-over-2", 60_000)])
    digest = image.layers[1].blob.digest
    async with pull_bench(containerd, daemon, workers=workers) as bench:
        reference = serve(registry, image, "damaged/handed-over")
        await bench.pull(reference)
        damage(bench, digest, "flipped")
        await break_chain(bench, image, 1)

        async def died(*_: object, **__: object) -> None:
            raise WorkerDied("killed")

        monkeypatch.setattr(Staging, "unpack", died)
        await bench.pull(reference)
        assert is_whole(bench, digest)
        assert (await bench.presence(reference, keep_layers=True)).present
        await bench.assert_clean()


async def test_a_layer_that_cannot_be_unpacked_though_its_blob_is_whole_is_not_fetched_again(
    portable: PullBench, fake: FaultyRegistry
) -> None:
    def lie(config: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"][1] = sha256(b"something else")

    image = changed(build_image([layer("whole"), layer("whole-2", 20_000)]), lie, "config")
    digest = image.layers[1].blob.digest
    reference = fake_serve(fake, image)
    for _ in range(2):
        with pytest.raises(PullError) as caught:
            await portable.pull(reference, keep_lease_on_failure=True)
        assert (caught.value.reason, caught.value.permanent) == ("DiffIDMismatch", True)
    assert len(fake.gets(digest)) == 1
    assert is_whole(portable, digest)
    await portable.puller.abandon(
        portable.request(reference, digest=image.digest, keep_lease_on_failure=True)
    )


@asynccontextmanager
async def elsewhere(bench: PullBench, *blobs: tuple[str, bytes]) -> AsyncIterator[None]:
    """Another namespace has these blobs on record, and their files, which it shares with ours, are damaged."""
    async with connect(bench.daemon.address, namespace="elsewhere") as other:
        for digest, body in blobs:
            blob = Descriptor("application/octet-stream", digest, len(body))
            await other.content.put(f"elsewhere-{digest}", blob, body, {"containerd.io/gc.root": "now"})
            damage(bench, digest, "flipped")
        try:
            yield
        finally:
            for digest, _ in blobs:
                await other.content.delete(digest)
            await collect_garbage(other)


async def test_a_blob_that_is_damaged_again_is_an_error_and_fetched_once(
    portable: PullBench, fake: FaultyRegistry
) -> None:
    """Another namespace keeps the file, and the runtime would have it for ours whatever is sent."""
    send(portable)
    image = build_image([layer("damaged-again"), layer("damaged-again-2", 60_000)])
    blob = image.layers[1].blob
    reference = fake_serve(fake, image)
    async with elsewhere(portable, (blob.digest, blob.read())):
        for attempt in (1, 2):
            with pytest.raises(PullError) as caught:
                async with asyncio.timeout(60):
                    await portable.pull(reference)
            error = caught.value
            assert (error.reason, error.permanent) == ("DamagedContent", True)
            assert str(blob_path(portable, blob.digest)) in error.message
            assert "its file has other bytes" in error.message
            assert len(fake.gets(blob.digest)) == attempt
        assert await portable.containerd.content.info(blob.digest) is None
        assert not await portable.containerd.images.list()
    await portable.pull(reference)
    assert (await portable.presence(reference, keep_layers=True)).present


async def test_what_another_namespace_has_damaged_does_not_hold_up_an_image(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("elsewhere"), layer("elsewhere-2", 60_000)])
    blobs = [image.manifest, image.config, *(found.blob for found in image.layers)]
    reference = fake_serve(fake, image)
    async with elsewhere(bench, *((blob.digest, blob.read()) for blob in blobs)):
        await bench.pull(reference)
        assert all(is_whole(bench, blob.digest) for blob in blobs)
        assert (await bench.presence(reference, keep_layers=True)).present


async def test_no_record_is_written_over_a_document_that_cannot_be_mended(
    portable: PullBench, fake: FaultyRegistry
) -> None:
    send(portable)
    image = build_image([layer("unmended"), layer("unmended-2")])
    reference = fake_serve(fake, image)
    async with elsewhere(portable, (image.config.digest, image.config.read())):
        with pytest.raises(PullError) as caught:
            await portable.pull(reference)
        assert caught.value.reason == "DamagedContent"
        assert image.config.digest in caught.value.message
        assert not await portable.containerd.images.list()


async def test_layers_that_vanish_again_and_again_are_reported_with_what_the_runtime_said(
    portable: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vanished(*_: object, **__: object) -> None:
        raise ChainLostError("what the runtime said")

    monkeypatch.setattr(Chain, "apply", vanished)
    with pytest.raises(PullError) as caught:
        await portable.pull(serve(registry, build_image([layer("vanishing")]), "damaged/vanishing"))
    assert caught.value.reason == "RuntimeLostLayers"
    assert caught.value.message.endswith("(what the runtime said)")
