"""Blobs on real daemons: what is committed, what a failure leaves, and how two writers of one blob get along."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc.aio
import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import Content
from imageprepull.runtime.content_lock import LockPatience
from imageprepull.runtime.content_write import Blob, BlobWrite
from imageprepull.runtime.errors import (
    AlreadyExists,
    InvalidRequest,
    LeaseGone,
    Locked,
    NotFound,
    OutOfRange,
    PreconditionFailed,
    RuntimeFault,
)
from imageprepull.runtime.leases import LeasedResource
from imageprepull.runtime.protos import content_pb2 as pb
from tests.containerd.conftest import collect_garbage

MIB = 1 << 20
LAYER = "application/vnd.oci.image.layer.v1.tar"
SOURCE = "containerd.io/distribution.source.example.org"


def describe(data: bytes) -> Descriptor:
    return Descriptor(LAYER, sha256_digest(data), len(data))


async def write_half(containerd: Containerd, ref: str, blob: Descriptor, data: bytes) -> HalfWrite:
    """An ingest of `data` that stays open until `close`."""
    half = HalfWrite(containerd, ref, blob, data)
    await half.start()
    return half


class HalfWrite:
    """A writer that stops in the middle: it holds the lock of `ref` until it is closed."""

    def __init__(self, containerd: Containerd, ref: str, blob: Descriptor, data: bytes) -> None:
        make = containerd._rpc.channels.control.stream_stream(
            "/containerd.services.content.v1.Content/Write",
            request_serializer=pb.WriteContentRequest.SerializeToString,
            response_deserializer=pb.WriteContentResponse.FromString,
        )
        self._call = make(metadata=containerd._rpc.metadata)
        self._ref, self._blob, self._data = ref, blob, data

    def _request(self, action: pb.WriteAction.ValueType, offset: int, data: bytes) -> pb.WriteContentRequest:
        return pb.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._blob.size,
            expected=self._blob.digest,
            offset=offset,
            data=data,
        )

    async def start(self) -> None:
        await self._call.write(self._request(pb.WRITE, 0, self._data))
        await self._call.read()

    async def commit(self, rest: bytes) -> None:
        await self._call.write(self._request(pb.COMMIT, len(self._data), rest))
        await self._call.read()

    async def close(self) -> None:
        await self._call.done_writing()
        while await self._call.read() is not grpc.aio.EOF:
            pass


async def test_put_commits_with_labels(leased: Containerd) -> None:
    data = os.urandom(1000)
    blob = describe(data)
    put = await leased.content.put(f"layer-{blob.digest}", blob, data, {"a": "b"})
    assert put == await leased.content.info(blob.digest)
    assert put.labels == {"a": "b"}
    assert put.size == len(data)
    assert await leased.content.read(blob.digest) == data


async def test_empty_blob_can_be_put(leased: Containerd) -> None:
    await leased.content.put("layer-empty", describe(b""), b"", {})
    assert await leased.content.read(sha256_digest(b"")) == b""


async def test_missing_blob_is_none_and_its_changes_are_not_found(containerd: Containerd) -> None:
    digest = sha256_digest(b"nobody has this")
    assert await containerd.content.info(digest) is None
    assert await containerd.content.status("layer-none") is None
    with pytest.raises(NotFound, match=digest):
        await containerd.content.read(digest)
    with pytest.raises(NotFound):
        await containerd.content.update_labels(digest, {"a": "b"})
    with pytest.raises(NotFound):
        await containerd.content.delete(digest)
    await containerd.content.abort("layer-none")


async def test_read_refuses_what_is_longer_than_its_limit(leased: Containerd) -> None:
    data = os.urandom(3 * MIB)
    blob = describe(data)
    await leased.content.put("layer-long", blob, data, {})
    with pytest.raises(InvalidRequest, match="longer than"):
        await leased.content.read(blob.digest, limit=2 * MIB)
    streamed = [chunk async for chunk in leased.content.stream(blob.digest, offset=MIB)]
    assert b"".join(streamed) == data[MIB:]


async def test_ingest_reports_every_byte_and_commits(leased: Containerd, tmp_path: Path) -> None:
    data = os.urandom(9 * MIB + 17)
    spool = tmp_path / "spool"
    spool.write_bytes(data)
    blob, seen = describe(data), list[int]()
    await leased.content.ingest(f"layer-{blob.digest}", blob, spool, {"a": "b"}, seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, len(data))
    info = await leased.content.info(blob.digest)
    assert info is not None
    assert info.labels == {"a": "b"}


async def test_ingest_goes_on_where_an_earlier_one_stopped(leased: Containerd, tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    spool = tmp_path / "spool"
    spool.write_bytes(data)
    blob, ref, seen = describe(data), "layer-resumed", list[int]()
    half = await write_half(leased, ref, blob, data[: 3 * MIB])
    await half.close()
    status = await leased.content.status(ref)
    assert status is not None
    assert (status.offset, status.total) == (3 * MIB, len(data))
    await leased.content.ingest(ref, blob, spool, {}, seen.append)
    assert seen[0] == 3 * MIB
    assert b"".join([chunk async for chunk in leased.content.stream(blob.digest)]) == data


@pytest.mark.parametrize("wrong", [b"x" * 999, b"x" * 1000, b"x" * 1001], ids=["short", "digest", "long"])
async def test_wrong_bytes_leave_no_poisoned_ingest(leased: Containerd, wrong: bytes) -> None:
    blob = describe(b"y" * 1000)
    with pytest.raises((PreconditionFailed, OutOfRange)):
        await leased.content.put(f"layer-{blob.digest}", blob, wrong, {})
    assert await leased.content.list_ingests() == []
    await leased.content.put(f"layer-{blob.digest}", blob, b"y" * 1000, {})


async def test_without_abort_a_wrong_ingest_would_stay(containerd: Containerd) -> None:
    """The trap that the façade's Abort is there for; were it gone, the Abort could go."""
    blob = describe(b"y" * 1000)
    write = BlobWrite(containerd._rpc, "layer-poisoned", Blob(blob, b"x" * 1000, {}), lambda offset: None)
    with pytest.raises(PreconditionFailed):
        await asyncio.to_thread(write.run)
    status = await containerd.content.status("layer-poisoned")
    assert status is not None
    assert status.offset == blob.size
    await containerd.content.abort("layer-poisoned")


async def test_unreadable_source_is_the_callers_error_and_leaves_nothing(
    leased: Containerd, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        await leased.content.ingest("layer-lost", describe(b"abc"), tmp_path / "gone", {})
    assert await leased.content.list_ingests() == []


async def test_existing_blob_is_leased_and_gets_our_labels_beside_others(containerd: Containerd) -> None:
    data = os.urandom(100)
    blob = describe(data)
    await containerd.leases.create("theirs", {}, 600)
    await containerd.leases.create("ours", {}, 600)
    theirs, ours = containerd.with_lease("theirs"), containerd.with_lease("ours")
    await theirs.content.put("layer-shared", blob, data, {SOURCE: "library/a", "theirs": "1"})
    await ours.content.put("layer-shared", blob, data, {SOURCE: "library/b", "ours": "2"})
    await containerd.leases.delete("theirs", sync=True)
    info = await containerd.content.info(blob.digest)
    assert info is not None
    assert info.labels == {SOURCE: "library/a,library/b", "theirs": "1", "ours": "2"}
    assert LeasedResource("content", blob.digest) in await containerd.leases.resources("ours")
    await containerd.leases.delete("ours", sync=True)
    assert await containerd.content.info(blob.digest) is None


async def test_blob_without_lease_is_collected(containerd: Containerd) -> None:
    """The premise of the test before: leases are what keeps."""
    await containerd.content.put("layer-free", describe(b"free"), b"free", {})
    await collect_garbage(containerd)
    assert await containerd.content.info(sha256_digest(b"free")) is None


async def test_write_waits_for_another_writer_and_adopts_its_blob(containerd: Containerd) -> None:
    data = os.urandom(2 * MIB)
    blob, ref = describe(data), "layer-contended"
    await containerd.leases.create("ours", {}, 600)
    ours = containerd.with_lease("ours")
    half = await write_half(containerd, ref, blob, data[:MIB])
    waiting = asyncio.create_task(ours.content.put(ref, blob, data, {"ours": "1"}))
    await asyncio.sleep(0.5)  # gives a put that does not wait the time to fail
    assert not waiting.done()
    await half.commit(data[MIB:])
    info = await waiting
    assert info.labels == {"ours": "1"}
    assert LeasedResource("content", blob.digest) in await containerd.leases.resources("ours")
    await containerd.leases.delete("ours")


async def test_locked_is_told_from_a_lost_connection(containerd: Containerd) -> None:
    data = os.urandom(100)
    half = await write_half(containerd, "layer-held", describe(data), data[:10])
    write = BlobWrite(containerd._rpc, "layer-held", Blob(describe(data), data, {}), lambda offset: None)
    with pytest.raises(Locked):
        await asyncio.to_thread(write.run)
    await half.close()
    await containerd.content.abort("layer-held")


async def test_writer_without_progress_is_passed_by_under_a_private_ref(leased: Containerd) -> None:
    data = os.urandom(100)
    blob = describe(data)
    half = await write_half(leased, "layer-stuck", blob, data[:10])
    content = Content(leased._rpc, LockPatience(0.05, 0.1, 0.4))
    await content.put("layer-stuck", blob, data, {})
    assert await leased.content.info(blob.digest) is not None
    await half.close()
    await leased.content.abort("layer-stuck")


async def test_writer_that_gives_up_is_followed(leased: Containerd) -> None:
    data = os.urandom(1000)
    blob = describe(data)
    half = await write_half(leased, "layer-left", blob, data[:10])
    waiting = asyncio.create_task(
        Content(leased._rpc, LockPatience(0.05, 0.1, 60)).put("layer-left", blob, data, {})
    )
    await asyncio.sleep(0.1)  # the put has met the lock by then
    await half.close()
    await waiting
    assert await leased.content.list_ingests() == []
    assert await leased.content.read(blob.digest) == data


async def test_cancelled_ingest_stops_its_thread_and_keeps_what_was_sent(
    leased: Containerd, tmp_path: Path
) -> None:
    data = os.urandom(64 * MIB)
    spool = tmp_path / "spool"
    spool.write_bytes(data)
    blob, under_way = describe(data), asyncio.Event()

    def on_bytes(offset: int) -> None:
        if offset:
            under_way.set()

    ingest = asyncio.create_task(leased.content.ingest("layer-cut", blob, spool, {}, on_bytes))
    await under_way.wait()
    ingest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ingest
    async with asyncio.timeout(60):
        while (status := await leased.content.status("layer-cut")) is None or not status.offset:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the daemon tells nobody when it has closed the ingest
    assert await leased.content.info(blob.digest) is None
    # Nothing holds the lock any more: the next try goes on.
    seen = list[int]()
    await leased.content.ingest("layer-cut", blob, spool, {}, seen.append)
    assert seen[0] > 0


async def test_write_under_a_lease_that_is_gone_says_so(containerd: Containerd) -> None:
    gone = containerd.with_lease("never-created")
    with pytest.raises(LeaseGone):
        await gone.content.put("layer-leaseless", describe(b"abc"), b"abc", {})
    assert await containerd.content.list_ingests() == []


async def test_labels_are_set_one_by_one_and_removed_by_an_empty_value(leased: Containerd) -> None:
    blob = describe(b"labelled")
    await leased.content.put("layer-labelled", blob, b"labelled", {"keep": "1", "drop": "2"})
    updated = await leased.content.update_labels(
        blob.digest, {"drop": "", "containerd.io/uncompressed": "sha256:abc", "io.x/y.z": "3"}
    )
    assert updated.labels == {"keep": "1", "containerd.io/uncompressed": "sha256:abc", "io.x/y.z": "3"}
    found = await leased.content.list(['labels."io.x/y.z"==3'])
    assert [info.digest for info in found] == [blob.digest]
    await leased.content.delete(blob.digest)


async def test_oversized_label_is_refused_and_the_ingest_removed(leased: Containerd) -> None:
    blob = describe(b"abc")
    with pytest.raises(RuntimeFault):
        await leased.content.put("layer-label", blob, b"abc", {"k": "v" * 5000})
    assert await leased.content.list_ingests() == []


async def test_what_is_no_digest_never_reaches_the_daemon(leased: Containerd) -> None:
    """containerd 2.4 panics on such a write."""
    with pytest.raises(InvalidRequest, match="not a digest"):
        await leased.content.put("layer-bad", Descriptor(LAYER, "abc", 3), b"abc", {})


async def test_many_writes_at_once(leased: Containerd) -> None:
    blobs = [os.urandom(100_000) for _ in range(24)]
    async with asyncio.TaskGroup() as group:
        for data in blobs:
            blob = describe(data)
            group.create_task(leased.content.put(f"layer-{blob.digest}", blob, data, {}))
    for data in blobs:
        assert await leased.content.info(sha256_digest(data)) is not None


async def test_raw_already_exists_at_open_is_an_error_of_its_own(leased: Containerd) -> None:
    blob = describe(b"abc")
    await leased.content.put("layer-abc", blob, b"abc", {})
    write = BlobWrite(leased._rpc, "layer-abc", Blob(blob, b"abc", {}), lambda offset: None)
    with pytest.raises(AlreadyExists):
        await asyncio.to_thread(write.run)


async def test_cancelled_write_has_opened_its_ingest_or_never_will(leased: Containerd) -> None:
    for number in range(30):
        data = os.urandom(1000)
        ref = f"layer-cancelled-{number}"
        call = asyncio.create_task(leased.content.put(ref, describe(data), data, {}))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await leased.content.abort(ref)
    assert await leased.content.list_ingests() == []


async def test_which_of_many_blobs_are_there_is_one_question(leased: Containerd) -> None:
    there = [describe(f"there {number}".encode()) for number in range(130)]
    for number, blob in enumerate(there):
        await leased.content.put(f"there-{number}", blob, f"there {number}".encode(), {})
    absent = [describe(f"absent {number}".encode()).digest for number in range(130)]
    assert await leased.content.having([*absent, *(blob.digest for blob in there[:60])]) == {
        blob.digest for blob in there[:60]
    }
    assert await leased.content.having([]) == set()
