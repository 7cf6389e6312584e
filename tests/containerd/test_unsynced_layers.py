"""Layers that are not on the disk yet: who sees to it, and what becomes of them at the next start of an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imageprepull.pulling import durability
from imageprepull.pulling.chain import Chain
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.durability import UNKNOWN_BOOT
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import TimedOut
from imageprepull.runtime.snapshots import Snapshots
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import BOOT, FAST, PullBench, Watched, layer, pull_bench, serve
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import build_image, build_index

EARLIER = "the-boot-before"


async def unsynced(containerd: Containerd) -> dict[str, str]:
    found = await containerd.snapshots.list(SNAPSHOTTER, [f'labels."{UNSYNCED}"'])
    return {one.name: one.labels[UNSYNCED] for one in found}


async def leave_unsynced(bench: PullBench, reference: str, mark: str) -> None:
    """As an agent that is killed before its sync."""
    await bench.pull(reference)
    for chain_id in [found.chain_id for found in (await bench.presence(reference)).layers]:
        await bench.containerd.snapshots.update_labels(SNAPSHOTTER, chain_id, {UNSYNCED: mark})


async def test_a_label_that_could_not_be_cleared_is_tried_again(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    registry: DockerRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = build_image([layer("slow-0"), layer("slow-1")])
    plain, failures = Snapshots.update_labels, [TimedOut("label a snapshot", "no answer")]

    async def update(self: Snapshots, snapshotter: str, name: str, labels: Mapping[str, str]) -> None:
        if UNSYNCED in labels and failures:
            raise failures.pop()
        await plain(self, snapshotter, name, labels)

    monkeypatch.setattr(Snapshots, "update_labels", update)
    settings = replace(FAST, sync_retry=0.05, sync_retry_cap=0.1)
    async with pull_bench(containerd, daemon, settings=settings) as bench:
        await bench.pull(serve(registry, image, "unsynced/slow"), until="ready")
        await bench.puller.finish()
        async with asyncio.timeout(60):
            while await unsynced(containerd):  # noqa: ASYNC110 - snapshots tell nobody.
                await asyncio.sleep(0.02)


async def test_who_is_stopped_syncs_what_was_ready(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    registry: DockerRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = build_image([layer("stopped-0"), layer("stopped-1")])
    reference = serve(registry, image, "unsynced/stopped")
    keeping = asyncio.Event()

    async def hang(*_: object) -> None:
        keeping.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("imageprepull.pulling.image.keep_later", hang)

    async def live() -> None:
        async with pull_bench(containerd, daemon) as bench:
            await bench.pull(reference, until="ready")
            await keeping.wait()
            assert set((await unsynced(containerd)).values()) == {BOOT}
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(live())
    assert await unsynced(containerd) == {}


async def test_where_the_runtimes_folder_cannot_be_seen_layers_of_this_boot_are_believed(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, tmp_path: Path
) -> None:
    image = build_image([layer("unseen-0"), layer("unseen-1")])
    reference = serve(registry, image, "unsynced/unseen")
    async with pull_bench(containerd, daemon, root=tmp_path / "nowhere") as bench:
        await bench.pull(reference, until="ready")
        await bench.puller.finish()
        assert len(await unsynced(containerd)) == 2, "it cannot sync"
    async with pull_bench(containerd, daemon, root=tmp_path / "nowhere") as bench:
        assert (await bench.sweep({image.digest})).unsynced_snapshots == []
        assert (await bench.presence(reference)).present
        progress = Watched("x")
        await bench.pull(reference, progress, until="ready")
        assert progress.states() == ["Exists", "Exists"]
        await bench.puller.finish()
    # Another boot, and an agent that sees the folder.
    async with pull_bench(containerd, daemon, boot_id="the-next-boot") as bench:
        swept = await bench.sweep({image.digest}, boot_id="the-next-boot")
        assert set(swept.unsynced_snapshots) == set(image.chain_ids)
        await bench.pull(reference, keep_lease_on_failure=True)
        assert await unsynced(containerd) == {}
        await bench.assert_clean()


@pytest.mark.parametrize("top", ["manifest", "index"])
async def test_kept_blobs_outlive_the_records_of_unsynced_layers(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    registry: DockerRegistry,
    top: str,
) -> None:
    image = build_image([layer("kept-0", 20_000), layer("kept-1", 20_000)])
    built = build_index([image]) if top == "index" else image
    digest = built.index.digest if top == "index" else image.digest  # type: ignore[union-attr]
    reference = serve(registry, built, f"unsynced/kept-{top}")
    async with pull_bench(containerd, daemon) as bench:
        await leave_unsynced(bench, reference, EARLIER)
        swept = await bench.sweep({digest})
        assert set(swept.unsynced_snapshots) == set(image.chain_ids)
        assert len(swept.unsynced_images) == 3
        await collect_garbage(containerd)
        registry.stop()
        try:
            outcome = await bench.pull(reference, digest=digest, keep_lease_on_failure=True)
        finally:
            registry.start()
        assert ([str(one.state) for one in outcome.layers], outcome.bytes_downloaded) == (["Applied"] * 2, 0)
        assert (await bench.presence(reference)).present
        await bench.assert_clean()
        # Nobody wants it any more: its blobs go with its records.
        await leave_unsynced(bench, reference, EARLIER)
        await bench.sweep()
        await collect_garbage(containerd)
        assert await containerd.content.list() == []
        await bench.assert_clean()


async def test_without_a_boot_id_layers_of_others_are_believed_and_keep_their_label(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    image = build_image([layer("boot-a"), layer("boot-b")])
    reference = serve(registry, image, "unsynced/boot")
    async with pull_bench(containerd, daemon, boot_id=UNKNOWN_BOOT) as bench:
        await leave_unsynced(bench, reference, EARLIER)
        assert (await bench.sweep({image.digest}, boot_id=UNKNOWN_BOOT)).unsynced_snapshots == []
        progress = Watched("x")
        await bench.pull(reference, progress)
        assert progress.states() == ["Exists", "Exists"]
        assert set((await unsynced(containerd)).values()) == {EARLIER}, "a later agent may know better"
        # What a disk has lost is not believed for that.
        lost = {UNSYNCED: f"{UNKNOWN_BOOT}-lost"}
        await containerd.snapshots.update_labels(SNAPSHOTTER, image.chain_ids[1], lost)
        swept = await bench.sweep({image.digest}, boot_id=UNKNOWN_BOOT)
        assert swept.unsynced_snapshots == [image.chain_ids[1]]
        await bench.pull(reference, progress, keep_lease_on_failure=True)
        assert progress.states()[1] == "Applied"


async def test_a_layer_committed_while_writes_are_lost_is_not_believed(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    registry: DockerRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = build_image([layer("just-0"), layer("just-1")])
    reference = serve(registry, image, "unsynced/just")
    plain = Chain._commit
    async with pull_bench(containerd, daemon) as bench:

        async def commit(self: Chain, one: ChainLayer, key: str) -> None:
            await plain(self, one, key)
            # Somebody was told, and has looked through the layers when this one was not there yet.
            bench.puller.writes.losses += 1

        monkeypatch.setattr(Chain, "_commit", commit)
        with pytest.raises(PullError, match="lost writes") as caught:
            await bench.pull(reference, keep_lease_on_failure=True, digest=image.digest, sync="before")
        assert caught.value.reason == "DiskError"
        assert BOOT not in (await unsynced(containerd)).values()
        monkeypatch.undo()
        progress = Watched("x")
        await bench.pull(reference, progress, keep_lease_on_failure=True, digest=image.digest)
        assert progress.states() == ["Applied", "Applied"]
        await bench.assert_clean()


async def test_layers_that_wait_when_another_images_sync_fails_are_not_believed(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    registry: DockerRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = build_image([layer("fails-0")]), build_image([layer("fails-1")])
    reference = serve(registry, first, "unsynced/fails")
    async with pull_bench(containerd, daemon) as bench:
        await leave_unsynced(bench, reference, BOOT)

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(durability, "sync_file_system", fail)
        with pytest.raises(Exception, match="cannot sync"):
            await bench.pull(serve(registry, second, "unsynced/second"))
        monkeypatch.undo()
        assert not (await bench.presence(reference)).present
        progress = Watched("x")
        await bench.pull(reference, progress)
        assert progress.states() == ["Applied"]
