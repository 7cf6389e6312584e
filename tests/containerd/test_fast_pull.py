"""Images on the fast path, into real daemons: the same trees as by the portable one, and nothing left over."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imageprepull.pulling import staging
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.exchange import exchange
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage, leftovers, wipe
from tests.containerd.layer_trees import layer_trees
from tests.containerd.pull_bench import PullBench, Watched, fake_serve, layer, pull_bench, serve
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import LayerSpec, build_image


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, workers=workers, path="fast", stall=30) as bench:
        yield bench
        await bench.assert_clean()


def archive(*members: tuple[str, dict[str, Any], bytes]) -> LayerSpec:
    """A layer of just these entries, parents not listed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, attributes, data in members:
            info = tarfile.TarInfo(name)
            for key, value in attributes.items():
                setattr(info, key, value)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return LayerSpec(tar=buffer.getvalue())


DIRECTORY: dict[str, Any] = {"type": tarfile.DIRTYPE, "mode": 0o755}
FILE: dict[str, Any] = {"mode": 0o644}
BASE = archive(
    ("./", {**DIRECTORY, "mode": 0o700, "uid": 7}, b""),
    ("usr/", DIRECTORY, b""),
    ("usr/local/", {**DIRECTORY, "mode": 0o2775, "gid": 50}, b""),
    ("usr/local/lib/", {**DIRECTORY, "mode": 0o2775, "gid": 50, "uid": 3}, b""),
    ("usr/local/lib/old", FILE, b"old"),
    ("usr/hard", {"type": tarfile.LNKTYPE, "linkname": "usr/local/lib/old"}, b""),
    ("usr/setuid", {"mode": 0o4755, "pax_headers": {"SCHILY.xattr.user.note": "kept"}}, b"#!"),
    ("link", {"type": tarfile.SYMTYPE, "linkname": "usr/local"}, b""),
    ("pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}, b""),
)
CHANGES = archive(
    ("usr/local/lib/new/file", {"mode": 0o640, "uid": 9}, b"in directories that are not listed"),
    ("usr/.wh.setuid", FILE, b""),
    ("etc/conf", FILE, b"new"),
)
OPAQUE = archive(("usr/local/lib/.wh..wh..opq", FILE, b""), ("usr/local/lib/only", FILE, b"this"))


async def test_trees_are_those_of_the_portable_path(
    bench: PullBench, registry: DockerRegistry, daemon: ContainerdDaemon
) -> None:
    image = build_image([BASE, CHANGES, OPAQUE, layer("plain", compression="plain"), BASE])
    reference = serve(registry, image, "fast/trees")
    progress = Watched("x")
    outcome = await bench.pull(reference, progress)
    assert progress.states() == ["Applied"] * 5
    assert outcome.bytes_downloaded == sum({b.blob.digest: b.blob.size for b in image.layers}.values())
    ours = await layer_trees(bench.containerd, image.chain_ids[-1])
    async with connect(daemon.address, namespace="portable") as other:
        try:
            async with pull_bench(other, daemon, path="portable") as portable:
                await portable.pull(reference)
            theirs = await layer_trees(other, image.chain_ids[-1])
        finally:
            await wipe(other)
    assert ours == theirs
    assert (await bench.presence(reference)).present


@pytest.mark.parametrize("family", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
async def test_every_kind_of_layer(
    bench: PullBench, registry: DockerRegistry, family: str, compression: str
) -> None:
    specs = [
        layer(f"fast-{family}-{compression}-{n}", family=family, compression=compression) for n in (0, 1)
    ]
    image = build_image(specs, family=family)
    await bench.pull(serve(registry, image, f"fast/{family}-{compression}"))
    trees = await layer_trees(bench.containerd, image.chain_ids[-1])
    assert [sum("content" in entry for entry in found.values()) for found in trees] == [1, 1]


@pytest.mark.parametrize("keep", ["after", "before", "never"])
async def test_blobs_are_kept_as_asked_and_the_image_does_not_need_them(
    bench: PullBench, registry: DockerRegistry, keep: str
) -> None:
    image = build_image([layer(f"kept-{keep}"), layer("again"), layer("again")])
    reference = serve(registry, image, f"fast/keep-{keep}")
    runtime = bench.containerd
    await bench.pull(reference, keep_blobs=keep, until="ready")
    assert (await bench.presence(reference)).present
    await bench.puller.finish()
    await collect_garbage(runtime)
    assert (await bench.presence(reference)).present
    for built in image.layers:
        found = await runtime.content.info(built.blob.digest)
        if keep == "never":
            assert found is None
        else:
            assert found is not None
            assert found.labels["containerd.io/uncompressed"] == built.diff_id
    assert bench.spooled() == []


async def test_layers_are_unpacked_while_they_download_and_committed_in_order(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer(f"flow-{n}", 600_000) for n in range(4)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=100_000, release=release)]
    progress = Watched("x")
    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    await progress.until(lambda seen: seen.states() == ["Applied", "Extracting", "Extracted", "Extracted"])
    assert 0 < progress.layers[1].done < progress.layers[1].size
    release.set()
    await pulling
    applied = [number for number, state in progress.history if state == "Applied"]
    assert applied == [0, 1, 2, 3]


async def test_a_lease_that_vanishes_while_a_layer_is_unpacked_costs_the_layer_and_nothing_else(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    """The runtime deletes what is being written, and tells the writer nothing."""
    image = build_image([layer("loss-0", 50_000), layer("loss-1", 600_000)])
    release = asyncio.Event()
    held = image.layers[1].blob.digest
    fake.faults[held] = [Fault(hold_after=100_000, release=release)]
    progress = Watched("x")
    reference = fake_serve(fake, image)
    pulling = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda seen: seen.states() == ["Applied", "Extracting"])
    for lease in await bench.containerd.leases.list():
        await bench.containerd.leases.delete(lease.id, sync=True)
    assert await bench.containerd.snapshots.list(SNAPSHOTTER) == []
    release.set()
    await pulling
    trees = await layer_trees(bench.containerd, image.chain_ids[-1])
    assert [sum("content" in entry for entry in found.values()) for found in trees] == [1, 1]
    assert len(fake.gets(held)) == 1, "the bytes were there"


async def test_a_tree_that_lost_files_before_the_exchange_is_never_committed(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection takes the record first, then the files; nobody who writes or renames there gets an error."""
    image = build_image([layer("gap-0"), layer("gap-1")])
    runtime, loop = bench.containerd, asyncio.get_running_loop()
    gaps: list[Path] = []

    def lose(staged: Path, prepared: Path) -> None:
        if not gaps and (staged / "layers/gap-1").exists():
            gaps.append(staged)
            asyncio.run_coroutine_threadsafe(remove(), loop).result(20)
            (staged / "layers/gap-1").unlink()
        exchange(staged, prepared)

    async def remove() -> None:
        for found in await runtime.snapshots.list(SNAPSHOTTER, ["kind==active"]):
            if "staging" in found.name:
                await runtime.snapshots.remove(SNAPSHOTTER, found.name)

    monkeypatch.setattr(staging, "exchange", lose)
    await bench.pull(serve(registry, image, "fast/gap"))
    assert len(gaps) == 1
    trees = await layer_trees(runtime, image.chain_ids[-1])
    assert "layers/gap-1" in trees[1]


async def test_a_chain_that_somebody_else_commits_first_is_taken(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    image = build_image([layer("race-0", 400_000), layer("race-1", 600_000)])
    reference = fake_serve(fake, image)
    release = asyncio.Event()
    fake.faults[image.layers[0].blob.digest] = [Fault(hold_after=100_000, release=release)]
    progress = Watched("x")
    pulling = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda seen: seen.states() == ["Extracting", "Extracted"])
    async with pull_bench(bench.containerd, daemon) as kubelet:
        kubelet.puller._machinery.spool.folder = bench.spool.with_name("elsewhere")
        await kubelet.pull(fake_serve(fake, image, "2"), until="done")
    release.set()
    await pulling
    assert (await bench.presence(reference)).present


async def test_two_images_share_layers_and_bytes(bench: PullBench, fake: FaultyRegistry) -> None:
    base = [layer("fast-common-0", 50_000), layer("fast-common-1", 50_000)]
    images = [build_image([*base, layer(name)]) for name in ("fast-left", "fast-right")]
    references = [fake_serve(fake, image, tag) for image, tag in zip(images, ("l", "r"), strict=True)]
    await asyncio.gather(*(bench.pull(reference) for reference in references))
    for digest in {built.blob.digest for image in images for built in image.layers}:
        assert len(fake.gets(digest)) == 1
    for reference in references:
        assert (await bench.presence(reference)).present


@pytest.mark.parametrize("when", ["download", "wait"])
async def test_a_cancelled_pull_leaves_nothing(bench: PullBench, fake: FaultyRegistry, when: str) -> None:
    image = build_image([layer("fast-cancel-0", 400_000), layer("fast-cancel-1", 400_000)])
    held = 1 if when == "download" else 0
    fake.faults[image.layers[held].blob.digest] = [Fault(hold_after=100_000)]
    progress = Watched("x")
    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    states = {"download": ["Applied", "Extracting"], "wait": ["Extracting", "Extracted"]}[when]
    await progress.until(lambda seen: seen.states() == states)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await bench.assert_clean()


async def test_a_layer_that_unpacks_to_something_else(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("fast-honest"), layer("fast-liar")])
    lying = build_image([layer("fast-honest"), layer("fast-liar-2")])
    fake_serve(fake, lying)
    reference = fake_serve(fake, image)
    real, wrong = image.layers[1].blob, lying.layers[1].blob

    def lie(body: bytes) -> bytes:
        return fake.blobs[wrong.digest]

    fake.faults[real.digest] = [Fault(change=lie) for _ in range(50)]
    with pytest.raises(PullError):
        await bench.pull(reference)
    await bench.assert_clean()


async def test_bytes_that_are_not_the_blobs_are_fetched_and_unpacked_again(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("fast-flip", 50_000)])

    def corrupt(body: bytes) -> bytes:
        return body[:-20] + bytes([body[-20] ^ 1]) + body[-19:]

    fake.faults[image.layers[0].blob.digest] = [Fault(change=corrupt)]
    reference = fake_serve(fake, image)
    await bench.pull(reference)
    assert (await bench.presence(reference)).present


async def test_blobs_that_the_runtime_has_are_unpacked_from_there(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("there-0", 300_000), layer("there-1", 300_000)])
    reference, runtime = fake_serve(fake, image), bench.containerd
    await bench.pull(reference, keep_blobs="before")
    await runtime.leases.create("somebody", {}, 600)
    for built in image.layers:
        await runtime.leases.add_resource("somebody", "content", built.blob.digest)
    for record in await runtime.images.list():
        await runtime.images.delete(record.name)
    await collect_garbage(runtime)
    assert await runtime.snapshots.list(SNAPSHOTTER) == []
    progress = Watched("x")
    outcome = await bench.pull(reference, progress)
    assert outcome.bytes_downloaded == 0
    assert progress.states() == ["Applied"] * 2
    assert (1, "Extracted") in [(number, str(state)) for number, state in progress.history]
    await runtime.leases.delete("somebody")
    assert (await bench.presence(reference)).present


async def test_an_agents_attempt_that_fails_keeps_what_it_downloaded_and_the_next_goes_on(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("resume-0", 300_000), layer("resume-1", 300_000), layer("resume-2", 300_000)])
    reference, cut = fake_serve(fake, image), image.layers[0].blob
    fake.faults[cut.digest] = [Fault(cut_after=cut.size // 2), *[Fault(status=503) for _ in range(40)]]
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": True}
    with pytest.raises(PullError):
        await bench.pull(reference, **changes)
    assert (await leftovers(bench.containerd)).active_snapshots == []
    fake.faults.clear()
    outcome = await bench.pull(reference, **changes)
    assert outcome.bytes_downloaded < sum(built.blob.size for built in image.layers)
    assert (await bench.presence(reference)).present
    for built in image.layers:
        assert await bench.containerd.content.info(built.blob.digest) is not None
