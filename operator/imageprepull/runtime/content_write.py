"""The write protocol of containerd's content service: one blob, one stream, in a thread of its own.

`content.py` decides when and under which ref to write and what a failure means for the lease; here is only the
conversation. Its traps (content/v1 contentserver): the offset of every message must be where the ingest stands, and
a zero truncates, in a COMMIT too; the server works through the messages in order, so they may be sent ahead.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.errors import RuntimeFault, Unavailable
from imageprepull.runtime.protos import content_pb2 as pb
from imageprepull.runtime.rpc import BulkCall, Rpc

# Measured: smaller ones cost up to twice the CPU, larger ones gain nothing.
MESSAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """What is to be committed: bytes in memory or a complete file, and the labels that the commit sets."""

    descriptor: Descriptor
    source: bytes | Path
    labels: Mapping[str, str]

    def open(self) -> IO[bytes]:
        """The bytes from their beginning."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


class BlobWrite:
    """One attempt to write a blob under `ref`, from where an earlier ingest of that ref stopped.

    `run` blocks its thread; `cancel` may come from any other and leaves the ingest as it stands. `on_offset` is
    called in the thread of `run` with the bytes that the server has taken.
    """

    def __init__(
        self,
        rpc: Rpc,
        ref: str,
        blob: Blob,
        on_offset: Callable[[int], None],
    ) -> None:
        self._ref = ref
        self._blob = blob
        self._descriptor = blob.descriptor
        self._on_offset = on_offset
        self._operation = f"write {blob.descriptor.digest} as {ref}"
        # The server's first answer says where to start; None ends the requests.
        self._start: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._source_error: OSError | None = None
        self.opened = False
        self._settled = threading.Event()
        self._call: BulkCall[pb.WriteContentResponse] = rpc.bulk_stream(
            "/containerd.services.content.v1.Content/Write", self._requests(), pb.WriteContentResponse
        )

    def _request(
        self, action: pb.WriteAction.ValueType, offset: int = 0, data: bytes = b""
    ) -> pb.WriteContentRequest:
        return pb.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._descriptor.size,
            expected=self._descriptor.digest,
            offset=offset,
            data=data,
            labels=dict(self._blob.labels) if action == pb.COMMIT else {},
        )

    def _requests(self) -> Iterator[pb.WriteContentRequest]:
        """What is sent; grpc iterates over this in a thread of its own."""
        yield self._request(pb.STAT)
        offset = self._start.get()
        if offset is None:
            return
        try:
            with self._blob.open() as source:
                source.seek(offset)
                while data := source.read(MESSAGE_BYTES):
                    yield self._request(pb.WRITE, offset, data)
                    offset += len(data)
        except OSError as error:
            # Raised here it would be lost in grpc's thread, so `run` raises it.
            self._source_error = error
            return
        yield self._request(pb.COMMIT, offset)

    def run(self) -> None:
        """Write and commit.

        Raises:
            RuntimeFault: the server's; `opened` tells whether the ingest was ours by then.
            OSError: the source could not be read.
        """
        committed = False
        try:
            for answer in self._call.answers(self._operation):
                if not self.opened:
                    self.opened = True
                    self._settled.set()
                    self._start.put(answer.offset)
                committed = answer.action == pb.COMMIT
                self._on_offset(answer.offset)
        except RuntimeFault:
            if self._source_error is None:
                raise
        finally:
            self._settled.set()
            self._start.put(None)
        if self._source_error is not None:
            raise self._source_error
        if not committed:
            raise Unavailable(self._operation, "the runtime ended the stream without a commit")

    def wait_opened(self, seconds: float) -> None:
        """Block until the server has opened the ingest or refused to.

        Cancelled before, it may open one after the caller has looked for what is to be cleaned up.
        """
        self._settled.wait(seconds)

    def cancel(self) -> None:
        """Stop as soon as possible; what the server has taken stays as an ingest."""
        self._call.cancel()
        self._start.put(None)
