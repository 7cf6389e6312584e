"""Blobs that are placed into the content store instead of being sent, on both real daemons."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.pulling import placing as placing_module
from imageprepull.pulling.placing import Placing, any_placed, collect_unrecorded, give_name
from imageprepull.pulling.steps import Step
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.content import Content, private_ref
from imageprepull.runtime.content_write import Blob
from imageprepull.runtime.leases import LeasedResource
from tests.containerd.conftest import VERSIONS, Leftovers, leftovers
from tests.faults.node import Machine
from tests.faults.power import after_power_cut
from tests.testbed.daemon import ContainerdDaemon, containerd_daemon

LAYER = "application/vnd.oci.image.layer.v1.tar"
LABELS = {"a": "b"}


def describe(data: bytes) -> Descriptor:
    return Descriptor(LAYER, sha256_digest(data), len(data))


def content_root(daemon: ContainerdDaemon) -> Path:
    return daemon.root / "io.containerd.content.v1.content"


def blob_path(daemon: ContainerdDaemon, blob: Descriptor) -> Path:
    return content_root(daemon) / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def put_anything(containerd: Containerd) -> None:
    """The store makes its folder for the first blob."""
    await containerd.content.put("anything", describe(b"anything"), b"anything", {})


@pytest.fixture
async def store(leased: Containerd) -> Containerd:
    await put_anything(leased)
    return leased


@pytest.fixture
def spool(daemon: ContainerdDaemon) -> Iterator[Path]:
    """On the file system of the runtime's data."""
    folder = daemon.root / "placing-spool"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def spooled(spool: Path, data: bytes) -> tuple[Descriptor, Path]:
    blob = describe(data)
    path = spool / blob.digest.replace(":", "-")
    path.write_bytes(data)
    return blob, path


async def test_a_placed_blob_is_the_spools_file_and_is_held_by_the_lease_alone(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    blob, path = spooled(spool, os.urandom(3_000_000))
    assert await Placing(content_root(daemon), spool).place(store, blob, path, LABELS)
    found = await store.content.info(blob.digest)
    assert found is not None
    assert (found.size, found.labels) == (blob.size, LABELS)
    assert await store.content.read(blob.digest) == path.read_bytes()
    assert blob_path(daemon, blob).stat().st_ino == path.stat().st_ino
    assert LeasedResource("content", blob.digest) in await store.leases.resources("test")
    assert files_in(spool) == [path]

    await store.leases.delete("test", sync=True)
    await store.leases.create("test", {}, 600)
    await collect_unrecorded(store.with_lease(""), {})
    assert not blob_path(daemon, blob).exists()
    assert path.exists()


async def test_a_placed_file_that_nothing_records_is_collected(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    """As when the agent dies between the two steps."""
    placing = Placing(content_root(daemon), spool)
    blob, path = spooled(spool, b"recorded")
    assert await placing.place(store, blob, path, {})
    lost, lost_path = spooled(spool, b"not recorded")
    blob_path(daemon, lost).hardlink_to(lost_path)
    assert any_placed(spool)
    await collect_unrecorded(store.with_lease(""), {})
    assert not blob_path(daemon, lost).exists()
    assert not await store.content.record(lost, {})
    assert await placing.place(store, lost, lost_path, {})


async def nothing_to_collect(store: Containerd) -> None:
    """The daemon's own next collection has no reason to look at files, whatever ran here before."""
    await collect_unrecorded(store.with_lease(""), {})


class Collector:
    """The runtime's garbage collector, which takes a file that nothing records, but only so many `times`."""

    def __init__(self, times: int) -> None:
        self._left = times

    def meets(self, file: Path) -> None:
        if self._left:
            self._left -= 1
            file.unlink()


@pytest.mark.parametrize("collections", [1, 2, 3])
async def test_a_collection_between_the_two_steps_is_no_reason_to_send_the_blob(
    store: Containerd,
    daemon: ContainerdDaemon,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    collections: int,
) -> None:
    blob, path = spooled(spool, os.urandom(1000))
    placing = Placing(content_root(daemon), spool)
    assert await placing.place(store, *spooled(spool, os.urandom(100)), {})
    await nothing_to_collect(store)
    collector = Collector(collections)

    def collect(step: Step, subject: str) -> None:
        if step is Step.PLACED and subject == blob.digest:
            collector.meets(blob_path(daemon, blob))

    monkeypatch.setattr(placing_module, "reached", collect)
    assert await placing.place(store, blob, path, {}) is (collections < 3)
    assert await placing.place(store, blob, path, {}), "it is only this blob that is sent"


@pytest.mark.parametrize("collections", [1, 2, 3])
async def test_a_collection_during_the_trial_does_not_end_placing(
    store: Containerd,
    daemon: ContainerdDaemon,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    collections: int,
) -> None:
    placing = Placing(content_root(daemon), spool)
    await nothing_to_collect(store)
    collector = Collector(collections)

    def named_and_collected(path: Path, target: Path) -> None:
        give_name(path, target)
        collector.meets(target)

    monkeypatch.setattr(placing_module, "give_name", named_and_collected)
    assert await placing.place(store, *spooled(spool, os.urandom(100)), {}) is (collections < 3)
    assert placing.possible
    assert await placing.place(store, *spooled(spool, os.urandom(100)), {}), (
        "it is only that blob that is sent"
    )


async def test_a_blob_that_was_collected_each_time_is_no_reason_to_try_anew(
    store: Containerd, daemon: ContainerdDaemon, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial would meet the same collections."""
    placing = Placing(content_root(daemon), spool)
    assert await placing.place(store, *spooled(spool, os.urandom(100)), {})
    blob, path = spooled(spool, os.urandom(1000))
    named = list[Path]()
    collector = Collector(3)

    def collect(path: Path, target: Path) -> None:
        named.append(target)
        give_name(path, target)
        collector.meets(target)

    monkeypatch.setattr(placing_module, "give_name", collect)
    await nothing_to_collect(store)
    assert not await placing.place(store, blob, path, {})
    assert await placing.place(store, blob, path, {})
    assert named == [blob_path(daemon, blob)] * 4


async def test_a_name_outlives_a_power_cut_that_comes_before_its_record(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    """The record, which the daemon writes to disk, would lead to no file otherwise."""
    blob, path = spooled(spool, os.urandom(1000))
    give_name(path, blob_path(daemon, blob))
    with after_power_cut(Machine(daemon)) as later:
        assert blob_path(later.daemon, blob).read_bytes() == path.read_bytes()


async def test_a_damaged_file_is_replaced(store: Containerd, daemon: ContainerdDaemon, spool: Path) -> None:
    blob, path = spooled(spool, b"whole")
    blob_path(daemon, blob).write_bytes(b"-")
    assert await Placing(content_root(daemon), spool).place(store, blob, path, {})
    assert await store.content.read(blob.digest) == b"whole"


async def test_placing_again_what_was_placed_changes_nothing(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    blob, path = spooled(spool, b"twice")
    placing = Placing(content_root(daemon), spool)
    assert await placing.place(store, blob, path, {"a": "b"})
    assert await placing.place(store, blob, path, {"c": "d"})
    found = await store.content.info(blob.digest)
    assert found is not None
    assert found.labels == {"a": "b", "c": "d"}
    assert files_in(spool) == [path]


async def test_another_mount_is_no_error(store: Containerd, daemon: ContainerdDaemon, tmp_path: Path) -> None:
    blob, path = spooled(tmp_path, b"elsewhere")
    assert not await Placing(content_root(daemon), tmp_path).place(store, blob, path, {})
    assert await store.content.info(blob.digest) is None
    assert files_in(tmp_path) == [path]


async def test_a_folder_that_is_not_the_runtimes_gets_no_file(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    wrong = daemon.root / "another"
    (wrong / "blobs" / "sha256").mkdir(parents=True)
    blob, path = spooled(spool, b"never there")
    assert not await Placing(wrong, spool).place(store, blob, path, {})
    assert files_in(wrong / "blobs" / "sha256") == []
    assert await store.content.status(private_ref(blob.digest)) is None


@pytest.fixture(scope="module", params=VERSIONS)
def isolated(request: pytest.FixtureRequest) -> Iterator[ContainerdDaemon]:
    with containerd_daemon(request.param, share_content=False) as running:
        yield running


@pytest.fixture
def spool_beside(isolated: ContainerdDaemon) -> Iterator[Path]:
    folder = isolated.root / "placing-spool"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def alone(isolated: ContainerdDaemon) -> AsyncIterator[Containerd]:
    async with connect(isolated.address) as connection:
        await connection.leases.create("test", {}, 600)
        yield connection.with_lease("test")


async def test_a_runtime_that_isolates_namespaces_is_sent_its_blobs(
    alone: Containerd, isolated: ContainerdDaemon, spool_beside: Path
) -> None:
    await put_anything(alone)
    blob, path = spooled(spool_beside, b"mine")
    assert not await Placing(content_root(isolated), spool_beside).place(alone, blob, path, {})
    assert not blob_path(isolated, blob).exists()
    anything = blob_path(isolated, describe(b"anything"))
    assert files_in(anything.parent) == [anything]
    await alone.leases.delete("test")
    assert await leftovers(alone) == Leftovers()


async def test_a_file_that_is_there_and_not_believed_is_named_once_and_placing_tried_anew(
    alone: Containerd, isolated: ContainerdDaemon, spool_beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the daemon was started anew with other rules: its first answer here is not its own."""
    await put_anything(alone)
    placing = Placing(content_root(isolated), spool_beside)

    async def believe(*_: object) -> bool:
        return True

    with monkeypatch.context() as patched:
        patched.setattr(Content, "record", believe)
        assert await placing.place(alone, *spooled(spool_beside, b"before"), {})
    named = list[Path]()

    def give(path: Path, target: Path) -> None:
        named.append(target)
        give_name(path, target)

    monkeypatch.setattr(placing_module, "give_name", give)
    blob, path = spooled(spool_beside, b"after")
    assert not await placing.place(alone, blob, path, {})
    assert named == [blob_path(isolated, blob)]
    assert placing.possible, "not known before it was tried"
    assert not await placing.place(alone, blob, path, {})
    assert named[1:] != [blob_path(isolated, blob)]
    assert len(named) == 2
    assert not placing.possible


async def test_what_a_cancelled_placing_leaves_goes_with_its_lease(
    store: Containerd, daemon: ContainerdDaemon, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placing = Placing(content_root(daemon), spool)
    assert await placing.place(store, *spooled(spool, os.urandom(100)), {})
    await nothing_to_collect(store)
    blob, path = spooled(spool, os.urandom(1000))
    spooled_files = files_in(spool)
    opened, cancelled = threading.Event(), threading.Event()

    def collected(_: Step, subject: str) -> None:
        """So that the daemon begins with a file of its own; else it lists nothing."""
        assert subject == blob.digest
        blob_path(daemon, blob).unlink()

    def wait(blob: Blob) -> io.BytesIO:
        """The ingest is open, and nothing more is sent."""
        opened.set()
        cancelled.wait(20)
        return io.BytesIO()

    with monkeypatch.context() as patched:
        patched.setattr(placing_module, "reached", collected)
        patched.setattr(Blob, "open", wait)
        task = asyncio.create_task(placing.place(store, blob, path, {}))
        assert await asyncio.to_thread(opened.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        cancelled.set()
    assert task.cancelled()
    assert [left.ref for left in await store.content.list_ingests()] == [private_ref(blob.digest)]
    await store.leases.delete("test", sync=True)
    await store.leases.create("test", {}, 600)
    assert await store.content.list_ingests() == []
    assert not blob_path(daemon, blob).exists()
    assert files_in(spool) == spooled_files


async def test_a_full_disk_is_an_error_and_no_reason_to_give_placing_up(
    store: Containerd, daemon: ContainerdDaemon, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placing = Placing(content_root(daemon), spool)
    blob, path = spooled(spool, b"room for this")
    assert await placing.place(store, blob, path, {})

    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    other, other_path = spooled(spool, b"and not for this")
    with monkeypatch.context() as patched:
        patched.setattr(placing_module, "give_name", full)
        with pytest.raises(OSError, match="No space left"):
            await placing.place(store, other, other_path, {})
    assert await placing.place(store, other, other_path, {})


async def test_one_blob_may_be_placed_several_times_at_once(
    store: Containerd, daemon: ContainerdDaemon, spool: Path
) -> None:
    blob, path = spooled(spool, b"six times")
    placing = Placing(content_root(daemon), spool)
    assert await asyncio.gather(*(placing.place(store, blob, path, {}) for _ in range(6))) == [True] * 6
    assert files_in(spool) == [path]
