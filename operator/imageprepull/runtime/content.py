"""Blobs: containerd's content service, typed.

`put` and `ingest` end in one state whatever happened before and beside them: the blob is committed, in the lease of
the call, and bears the labels asked for. Labels are ignored by a commit of a blob that exists, and an image whose
manifest lacks its `gc.ref` labels is collected later (so they are set again).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import InvalidDigest, check_digest
from imageprepull.runtime.content_lock import LockPatience, LockWatch, Verdict
from imageprepull.runtime.content_write import Blob, BlobWrite
from imageprepull.runtime.errors import (
    AlreadyExists,
    InvalidRequest,
    Locked,
    NotFound,
    PreconditionFailed,
    RuntimeFault,
    TimedOut,
    Unavailable,
)
from imageprepull.runtime.labels import merged_sources
from imageprepull.runtime.leases import Leases
from imageprepull.runtime.protos import content_pb2 as pb
from imageprepull.runtime.rpc import DEADLINE, SETTLE_SECONDS, Rpc

_SERVICE = "/containerd.services.content.v1.Content"
READ_LIMIT = 8 << 20
PATIENCE = LockPatience()
_ABORT_PAUSES = (0.02, 0.1, 0.5, 2.0)


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A committed blob; `size` in bytes."""

    digest: str
    size: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """A blob being written, or left half written: `offset` bytes of `total` (0: not known)."""

    ref: str
    offset: int
    total: int
    expected: str


def _info(message: pb.Info) -> ContentInfo:
    return ContentInfo(message.digest, message.size, dict(message.labels))


def _status(message: pb.Status) -> IngestStatus:
    return IngestStatus(message.ref, message.offset, message.total, message.expected)


def private_ref(digest: str) -> str:
    """The name of an ingest that only we know."""
    return f"imageprepull-{digest}"


def ignore_bytes(_offset: int) -> None:
    """The listener of nobody."""


class Content:
    """The content service under one namespace and lease."""

    def __init__(self, rpc: Rpc, patience: LockPatience = PATIENCE) -> None:
        self._rpc = rpc
        self._patience = patience

    async def info(self, digest: str) -> ContentInfo | None:
        """The committed blob, or None. This adds nothing to a lease."""
        try:
            answer = await self._rpc.unary(
                f"{_SERVICE}/Info",
                pb.InfoRequest(digest=digest),
                pb.InfoResponse,
                operation=f"look up {digest}",
            )
        except NotFound:
            return None
        return _info(answer.info)

    async def list(self, filters: Sequence[str] = ()) -> list[ContentInfo]:
        """The committed blobs that match any of the filters (`labels."key"==value`)."""
        request = pb.ListContentRequest(filters=filters)
        answers = self._rpc.stream(
            f"{_SERVICE}/List", request, pb.ListContentResponse, operation="list blobs"
        )
        return [_info(info) async for answer in answers for info in answer.info]

    async def having(self, digests: Collection[str]) -> set[str]:
        """Which of these blobs are committed: one question for all. This adds nothing to a lease."""
        if not digests:
            return set()
        return {info.digest for info in await self.list([f'digest=="{digest}"' for digest in digests])}

    async def read(self, digest: str, *, limit: int = READ_LIMIT) -> bytes:
        """A small blob as a whole; one of more than `limit` bytes is refused."""
        data = bytearray()
        async for chunk in self.stream(digest, deadline=DEADLINE):
            data += chunk
            if len(data) > limit:
                raise InvalidRequest(f"read {digest}", f"longer than {limit} bytes")
        return bytes(data)

    async def stream(
        self, digest: str, *, offset: int = 0, deadline: float | None = None
    ) -> AsyncIterator[bytes]:
        """A blob from `offset` on, in pieces of about 1 MiB; without a deadline the caller watches for progress."""
        request = pb.ReadContentRequest(digest=digest, offset=offset)
        answers = self._rpc.stream(
            f"{_SERVICE}/Read", request, pb.ReadContentResponse, operation=f"read {digest}", deadline=deadline
        )
        async for answer in answers:
            yield answer.data

    async def update_labels(self, digest: str, labels: Mapping[str, str]) -> ContentInfo:
        """Set these labels and leave the others; an empty value removes one. One transaction with an fsync."""
        request = pb.UpdateRequest(
            info=pb.Info(digest=digest, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        answer = await self._rpc.unary(
            f"{_SERVICE}/Update", request, pb.UpdateResponse, operation=f"label {digest}"
        )
        return _info(answer.info)

    async def delete(self, digest: str) -> None:
        """Remove a blob, whoever uses it; a missing one is NotFound."""
        await self._rpc.unary(
            f"{_SERVICE}/Delete",
            pb.DeleteContentRequest(digest=digest),
            Empty,
            operation=f"delete {digest}",
        )

    async def status(self, ref: str) -> IngestStatus | None:
        """Where an ingest stands, or None."""
        try:
            answer = await self._rpc.unary(
                f"{_SERVICE}/Status",
                pb.StatusRequest(ref=ref),
                pb.StatusResponse,
                operation=f"look up ingest {ref}",
            )
        except NotFound:
            return None
        return _status(answer.status)

    async def list_ingests(self, filters: Sequence[str] = ()) -> Sequence[IngestStatus]:
        """The ingests that match any of the filters (`ref~=^layer-`)."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/ListStatuses",
            pb.ListStatusesRequest(filters=filters),
            pb.ListStatusesResponse,
            operation="list ingests",
        )
        return [_status(status) for status in answer.statuses]

    async def abort(self, ref: str) -> None:
        """Remove an ingest; one that is gone already is fine. A stream that still writes is not stopped by it."""
        for pause in _ABORT_PAUSES:
            try:
                await self._abort(ref)
            except RuntimeFault as fault:
                # The daemon is closing the stream that was just cancelled, and writes into the folder once more.
                if "directory not empty" not in fault.detail:
                    raise
                await asyncio.sleep(pause)
            else:
                return
        await self._abort(ref)

    async def _abort(self, ref: str) -> None:
        try:
            await self._rpc.unary(
                f"{_SERVICE}/Abort", pb.AbortRequest(ref=ref), Empty, operation=f"abort ingest {ref}"
            )
        except NotFound:
            return

    async def put(
        self,
        ref: str,
        descriptor: Descriptor,
        data: bytes,
        labels: Mapping[str, str],
        on_bytes: Callable[[int], None] = ignore_bytes,
        *,
        deadline: float = DEADLINE,
    ) -> ContentInfo:
        """Commit a small blob that is in memory, within `deadline` seconds beside waiting for another writer.

        `on_bytes` is called as by `ingest`, first with what the server had before; not at all where it has the blob on
        record.
        """
        return await self._ensure(ref, Blob(descriptor, data, labels), on_bytes, deadline)

    async def ingest(
        self,
        ref: str,
        descriptor: Descriptor,
        path: Path,
        labels: Mapping[str, str],
        on_bytes: Callable[[int], None] = ignore_bytes,
    ) -> ContentInfo:
        """Commit a complete blob from a file.

        `on_bytes` is called on the event loop with the bytes that the server has. There is no deadline: the caller
        watches for progress and cancels, which stops the stream and keeps the ingest for the next try.

        Raises:
            PreconditionFailed: digest or size are not those of the descriptor; the ingest was removed.
            RuntimeFault: anything else; the ingest was removed unless the connection was lost.
            OSError: `path` could not be read.
        """
        return await self._ensure(ref, Blob(descriptor, path, labels), on_bytes, None)

    async def record(self, descriptor: Descriptor, labels: Mapping[str, str]) -> bool:
        """Commit a blob whose file the store has already, in another namespace or placed there, without its bytes.

        Under a ref of our own: a kubelet that writes the same blob at this moment is not disturbed. False: the store
        has no such file of that size, or does not share files between namespaces.
        """
        nothing = Blob(descriptor, b"", labels)
        try:
            await self._ensure(private_ref(descriptor.digest), nothing, ignore_bytes, DEADLINE)
        except PreconditionFailed:
            return False
        return True

    async def _ensure(
        self, ref: str, blob: Blob, on_bytes: Callable[[int], None], deadline: float | None
    ) -> ContentInfo:
        digest = blob.descriptor.digest
        try:
            # containerd 2.4 panics on a write that expects something else than a digest.
            check_digest(digest)
        except InvalidDigest as error:
            raise InvalidRequest(f"write {digest[:100]}", str(error)) from None
        watch = LockWatch(self._patience, asyncio.get_running_loop().time())
        while True:
            try:
                await self._write(ref, blob, on_bytes, deadline)
            except AlreadyExists:
                return await self._adopt(digest, blob.labels)
            except Locked:
                if not await self._wait_for_writer(watch, ref, digest):
                    ref = private_ref(digest)
            else:
                return ContentInfo(digest, blob.descriptor.size, dict(blob.labels))

    async def _write(
        self, ref: str, blob: Blob, on_bytes: Callable[[int], None], deadline: float | None
    ) -> None:
        """One attempt, in a thread that has ended when this returns: the file belongs to the caller."""
        loop = asyncio.get_running_loop()
        write = BlobWrite(self._rpc, ref, blob, lambda offset: _call_soon(loop, on_bytes, offset))
        done = loop.run_in_executor(self._rpc.channels.threads, write.run)
        try:
            async with asyncio.timeout(deadline):
                await asyncio.shield(done)
        except TimeoutError:
            raise TimedOut(f"write {blob.descriptor.digest} as {ref}", f"no commit in {deadline} s") from None
        except asyncio.CancelledError:
            await loop.run_in_executor(None, write.wait_opened, SETTLE_SECONDS)
            raise
        except (AlreadyExists, Locked, Unavailable):
            raise
        except (RuntimeFault, OSError):
            # A complete but wrong ingest under the shared ref would make every later pull of this blob fail.
            if write.opened:
                await self.abort(ref)
            raise
        finally:
            write.cancel()
            await asyncio.wait([done])
            # Looked at, lest asyncio reports it as lost: after a cancellation it is only that of the call.
            done.exception()

    async def _adopt(self, digest: str, labels: Mapping[str, str]) -> ContentInfo:
        """Take a blob that somebody else committed into our lease, and give it our labels beside theirs.

        Not every AlreadyExists adds to the lease (one in answer to COMMIT does not), and AddResource succeeds for
        what does not exist: so the order is lease first, look afterwards.
        """
        if self._rpc.lease:
            await Leases(self._rpc).add_resource(self._rpc.lease, "content", digest)
        present = await self.info(digest)
        if present is None:
            raise Unavailable(f"adopt {digest}", "collected in the moment between two calls; write it again")
        wanted = merged_sources(present.labels, labels)
        if all(present.labels.get(key) == value for key, value in wanted.items()):
            return present
        return await self.update_labels(digest, wanted)

    async def _wait_for_writer(self, watch: LockWatch, ref: str, digest: str) -> bool:
        """Wait while another writer holds `ref`: True when another try makes sense, False when it is stuck."""
        while True:
            await asyncio.sleep(watch.pause)
            if await self.info(digest) is not None:
                return True
            status = await self.status(ref)
            now = asyncio.get_running_loop().time()
            verdict = watch.see(status.offset if status else None, now)
            if verdict is not Verdict.WAIT:
                return verdict is Verdict.OPEN


def _call_soon(loop: asyncio.AbstractEventLoop, on_bytes: Callable[[int], None], offset: int) -> None:
    """Hand `offset` to the event loop from a thread; a loop that was closed has no listener any more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(on_bytes, offset)
