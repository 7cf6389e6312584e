"""A layer that is not to be believed and is in use: it stays, and so does everything on it, until it can be made anew."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.pulling.provenance import forget
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.layer_trees import layer_folders
from tests.containerd.pull_bench import PullBench, Watched, layer, pull_as_the_kubelet, pull_bench, serve
from tests.containerd.test_disbelieved import CONTAINER, container_on
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import BuiltImage, build_image

REASONS = {"unsynced": "UnsyncedInUse", "emptied": "BrokenChain", "changed": "BrokenChain"}


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, workers=workers) as bench:
        yield bench
        await bench.assert_clean()


async def damage(bench: PullBench, image: BuiltImage, how: str) -> None:
    """The base alone is damaged, or as a power cut leaves them, all layers."""
    base = (await layer_folders(bench.containerd, image.chain_ids[-1]))[0]
    if how == "unsynced":
        for chain_id in image.chain_ids:
            await bench.containerd.snapshots.update_labels(SNAPSHOTTER, chain_id, {UNSYNCED: "another boot"})
    elif how == "emptied":
        for entry in base.iterdir():
            shutil.rmtree(entry)
    else:
        changed = next(path for path in base.rglob("*") if path.is_file())
        changed.write_bytes(b"-" * changed.stat().st_size)


@pytest.mark.parametrize("how", REASONS)
async def test_images_of_others_on_a_base_that_is_in_use_stay_until_it_is_made_anew(
    bench: PullBench, registry: DockerRegistry, how: str
) -> None:
    base = layer(f"in-use-{how}")
    ours, theirs = (build_image([base, layer(f"in-use-{how}-{whose}")]) for whose in ("ours", "theirs"))
    reference = serve(registry, ours, f"in-use/{how}-ours")
    kubelets = serve(registry, theirs, f"in-use/{how}-theirs")
    await bench.pull(reference)
    await pull_as_the_kubelet(bench.daemon, kubelets)

    async def whole() -> bool:
        records = {record.name for record in await bench.containerd.images.list()}
        top = await bench.containerd.snapshots.stat(SNAPSHOTTER, theirs.chain_ids[-1])
        return top is not None and {kubelets, reference} <= records

    async def attempt() -> None:
        if how == "changed":
            await bench.puller.verify(bench.request(reference), Watched(reference))
        await bench.pull(reference, digest=ours.digest)

    async with container_on(bench, ours.chain_ids[-1]):
        await damage(bench, ours, how)
        for _ in range(2):
            swept = await bench.sweep([ours.digest])
            assert (swept.unsynced_images, swept.unsynced_snapshots) == ([], [])
            with pytest.raises(PullError, match=CONTAINER) as caught:
                await attempt()
            assert (caught.value.reason, caught.value.permanent) == (REASONS[how], False)
            assert await whole()

    await attempt()
    assert (await bench.presence(reference)).present
    assert not await whole(), "it stood on a base that was not to be believed"
    (file,) = base.files
    made = (await layer_folders(bench.containerd, ours.chain_ids[-1]))[0] / file
    assert made.read_bytes() == base.files[file]
    await forget(bench.containerd, theirs.digest)
