"""Blobs that are placed into the content store instead of being sent, on both real daemons."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.pulling import placing as placing_module
from imageprepull.pulling.placing import Placing, any_placed, collect_unrecorded
from imageprepull.pulling.steps import Step
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.content import private_ref
from imageprepull.runtime.leases import LeasedResource
from tests.containerd.conftest import VERSIONS, Leftovers, leftovers
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
    left = collections

    def collect(step: Step, subject: str) -> None:
        nonlocal left
        if step is Step.PLACED and subject == blob.digest and left:
            left -= 1
            blob_path(daemon, blob).unlink()

    monkeypatch.setattr(placing_module, "reached", collect)
    assert await placing.place(store, blob, path, {}) is (collections < 3)
    assert await placing.place(store, blob, path, {}), "it is only this blob that is sent"


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
async def alone(isolated: ContainerdDaemon) -> AsyncIterator[Containerd]:
    async with connect(isolated.address) as connection:
        await connection.leases.create("test", {}, 600)
        yield connection.with_lease("test")


async def test_a_runtime_that_isolates_namespaces_is_sent_its_blobs(
    alone: Containerd, isolated: ContainerdDaemon
) -> None:
    await put_anything(alone)
    spool = isolated.root / "placing-spool"
    spool.mkdir()
    blob, path = spooled(spool, b"mine")
    assert not await Placing(content_root(isolated), spool).place(alone, blob, path, {})
    assert not blob_path(isolated, blob).exists()
    anything = blob_path(isolated, describe(b"anything"))
    assert files_in(anything.parent) == [anything]
    await alone.leases.delete("test")
    assert await leftovers(alone) == Leftovers()


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
