"""A present image is compared with its blobs, on both daemons, and what proves broken is pulled again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imageprepull.pulling import verification
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.tree_difference import first_difference
from imageprepull.pulling.verification import Verified
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import PullBench, Watched, pull_bench, serve
from tests.containerd.test_fast_pull import BASE, CHANGES
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import build_image

IMAGE = build_image([BASE, CHANGES])
FILE = "usr/local/lib/old"


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, workers=workers) as bench:
        yield bench
        await bench.assert_clean()


async def verify(bench: PullBench, reference: str) -> Verified:
    request = bench.request(reference, keep_lease_on_failure=True)
    return await bench.puller.verify(request, Watched(reference))


async def folders(bench: PullBench) -> list[Path]:
    return await bench.puller.folders.folders(bench.containerd, SNAPSHOTTER, IMAGE.chain_ids, {})


async def test_a_whole_image_is_whole(bench: PullBench, registry: DockerRegistry) -> None:
    reference = serve(registry, IMAGE, "verify/whole")
    await bench.pull(reference)
    assert await verify(bench, reference) == Verified(whole=2)
    assert (await bench.presence(reference)).present


async def test_without_blobs_nothing_is_known(bench: PullBench, registry: DockerRegistry) -> None:
    reference = serve(registry, IMAGE, "verify/unknown")
    await bench.pull(reference, keep_blobs="never")
    found = await verify(bench, reference)
    assert found == Verified(unknown=2)
    assert str(found) == "0 layers are whole, 2 have no blob to compare with"


def empty(path: Path) -> None:
    os.truncate(path, 0)


def change(path: Path) -> None:
    path.write_bytes(b"OLD")


def lose(path: Path) -> None:
    path.unlink()


def another_mode(path: Path) -> None:
    path.chmod(0o600)


def another_type(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_file(path: Path) -> None:
    (path.parent / "intruder").touch()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, f"/{FILE} has 0 bytes instead of 3"),
        (change, f"/{FILE} has other bytes"),
        (lose, f"/{FILE} is missing"),
        (another_mode, f"/{FILE} has another owner or mode"),
        (another_type, f"/{FILE} is of another type"),
        (another_file, "/usr/local/lib/intruder is not in the layer"),
    ],
)
async def test_a_broken_layer_is_removed_and_pulled_again(
    bench: PullBench, registry: DockerRegistry, damage: Callable[[Path], None], said: str
) -> None:
    reference = serve(registry, IMAGE, f"verify/{damage.__name__}")
    await bench.pull(reference)
    damage((await folders(bench))[0] / FILE)

    found = await verify(bench, reference)
    assert found.broken == IMAGE.chain_ids[0]
    # The file has two names, and either may be met first.
    assert found.difference.replace("/usr/hard", f"/{FILE}") == said
    assert not (await bench.presence(reference)).present
    await collect_garbage(bench.containerd)
    outcome = await bench.pull(reference, keep_lease_on_failure=True)
    assert [str(layer.state) for layer in outcome.layers] == ["Applied", "Applied"]
    assert outcome.bytes_downloaded == 0, "the blobs are there"
    assert await verify(bench, reference) == Verified(whole=2)


async def test_a_broken_layer_that_is_in_use_stays_and_is_reported(
    bench: PullBench, registry: DockerRegistry
) -> None:
    reference = serve(registry, IMAGE, "verify/used")
    await bench.pull(reference)
    change((await folders(bench))[0] / FILE)
    snapshots = bench.containerd.snapshots
    await snapshots.prepare(SNAPSHOTTER, "a-container", IMAGE.chain_ids[-1], {"containerd.io/gc.root": "now"})
    try:
        with pytest.raises(PullError, match="a-container") as caught:
            await verify(bench, reference)
        assert caught.value.reason == "BrokenChain"
        assert await snapshots.stat(SNAPSHOTTER, IMAGE.chain_ids[0]) is not None
    finally:
        await snapshots.remove(SNAPSHOTTER, "a-container")


async def test_a_damaged_blob_is_removed(bench: PullBench, registry: DockerRegistry) -> None:
    reference = serve(registry, IMAGE, "verify/blob")
    await bench.pull(reference)
    digest = IMAGE.layers[0].blob.digest
    blobs = bench.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    path = blobs / digest.removeprefix("sha256:")
    path.chmod(0o644)
    path.write_bytes(b"-" * path.stat().st_size)
    found = await verify(bench, reference)
    assert found == Verified(whole=1, unknown=1, damaged=[digest])
    assert await bench.containerd.content.info(digest) is None
    assert (await bench.presence(reference)).present


async def test_an_image_that_is_not_there(bench: PullBench, registry: DockerRegistry) -> None:
    reference = serve(registry, IMAGE, "verify/absent")
    with pytest.raises(PullError) as caught:
        await verify(bench, reference)
    assert caught.value.reason == "NotPresent"


@pytest.mark.parametrize("times", [1, 99])
async def test_a_lease_that_somebody_deletes_proves_nothing_against_a_whole_image(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The collection is at what we unpacked to compare with, and we are told of no error."""
    reference = serve(registry, IMAGE, f"verify/lease-{times}")
    await bench.pull(reference)
    loop = asyncio.get_running_loop()
    losses = 0

    async def lose() -> None:
        for lease in await bench.containerd.leases.list():
            await bench.containerd.leases.delete(lease.id, sync=True)

    def compared(ours: Path, theirs: Path) -> str:
        nonlocal losses
        if losses < times:
            losses += 1
            next(path for path in sorted(ours.rglob("*")) if path.is_file()).unlink()
            found = first_difference(ours, theirs)
            assert found
            asyncio.run_coroutine_threadsafe(lose(), loop).result(20)
            return found
        return first_difference(ours, theirs)

    monkeypatch.setattr(verification, "first_difference", compared)
    if times == 1:
        assert await verify(bench, reference) == Verified(whole=2)
    else:
        with pytest.raises(PullError) as caught:
            await verify(bench, reference)
        assert caught.value.reason == "RuntimeLostLayers"
    found = await bench.presence(reference)
    assert found.present, found.missing
