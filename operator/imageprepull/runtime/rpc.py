"""Calls on containerd's socket: metadata, deadlines, cancellation and errors, between `grpc` and the services.

Control calls use one `grpc.aio` channel; bulk writes use a synchronous channel of their own, in threads: that is
half the CPU at the same speed, and a large write never delays a control call by flow control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from imageprepull.runtime.errors import RpcFailure, from_rpc

Answer = TypeVar("Answer", bound=Message)

# The server's own limit on messages in both directions. Python's default of 4 MiB for what is received is too
# small for Plugins and ListStatuses on a busy node.
MESSAGE_LIMIT = 16 << 20
DEADLINE = 30.0
BULK_THREADS = 16
# How long a cancellation waits for the answer to a call that creates something.
SETTLE_SECONDS = 5.0

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # The default is the percent-encoded path of the socket, which some servers refuse.
    ("grpc.default_authority", "localhost"),
    # A restarted daemon is found at once; the default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name the time that one attempt to connect may take: a busy daemon needs some.
    ("grpc.min_reconnect_backoff_ms", 20_000),
)


class Channels:
    """Both channels to one socket and the threads of bulk writes, shared by all views of a connection."""

    def __init__(self, target: str) -> None:
        self.control = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.target = target
        self._bulk: grpc.Channel | None = None
        self.threads = ThreadPoolExecutor(BULK_THREADS, thread_name_prefix="containerd-bulk")

    @property
    def bulk(self) -> grpc.Channel:
        """The synchronous channel; a connection that never writes blobs has none."""
        if self._bulk is None:
            # A pool of its own: with the global one, grpc shares a connection between equal channels.
            options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
            self._bulk = grpc.insecure_channel(self.target, options=options)
        return self._bulk

    async def close(self) -> None:
        """Close both channels; calls that still run end as cancelled."""
        await self.control.close()
        if self._bulk is not None:
            self._bulk.close()
        # Threads end with their calls, and those were ended by the close above.
        await asyncio.get_running_loop().run_in_executor(None, self.threads.shutdown)


class Rpc:
    """How the services call: one namespace and at most one lease on the shared channels."""

    def __init__(self, channels: Channels, namespace: str, lease: str = "") -> None:
        self.channels = channels
        self.namespace = namespace
        self.lease = lease
        self.metadata = (
            ("containerd-namespace", namespace),
            *([("containerd-lease", lease)] if lease else []),
        )
        self._multicallables: dict[str, Any] = {}

    def with_lease(self, lease: str) -> Rpc:
        """The same channels, with `lease` in the header of every call."""
        return Rpc(self.channels, self.namespace, lease)

    def _multicallable(self, method: str, answer: type[Message]) -> Any:
        if method not in self._multicallables:
            self._multicallables[method] = self.channels.control.unary_unary(
                method, request_serializer=_serialize, response_deserializer=answer.FromString
            )
        return self._multicallables[method]

    async def unary(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        *,
        operation: str,
        deadline: float | None = DEADLINE,
        settle: bool = False,
    ) -> Answer:
        """One request, one answer within `deadline` seconds. Cancelling the await cancels the call.

        The server may carry out a cancelled call all the same, later than what the caller does to clean up. With
        `settle`, for calls that create something, a cancellation waits a while for the answer: afterwards the
        object is there to be removed, or never will be.

        Raises:
            RuntimeFault: what the runtime answered, or what became of the connection; `operation` says in words
                what was asked, and of which object.
        """
        call = self._multicallable(method, answer)(request, timeout=deadline, metadata=self.metadata)
        try:
            return cast("Answer", await (_settled(call) if settle else call))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(operation, error) from None

    async def stream(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        *,
        operation: str,
        deadline: float | None = DEADLINE,
    ) -> AsyncIterator[Answer]:
        """One request, many answers; `deadline` is for all of them. Leaving the loop cancels the call."""
        make = self.channels.control.unary_stream(
            method, request_serializer=_serialize, response_deserializer=answer.FromString
        )
        call = make(request, timeout=deadline, metadata=self.metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(operation, error) from None
        finally:
            call.cancel()

    def bulk_stream(self, method: str, requests: Iterator[Message], answer: type[Answer]) -> BulkCall[Answer]:
        """Many requests, many answers, for use in a thread; no deadline: whoever waits watches for progress."""
        make = self.channels.bulk.stream_stream(
            method, request_serializer=_serialize, response_deserializer=answer.FromString
        )
        return BulkCall(make(requests, metadata=self.metadata))


class BulkCall(Generic[Answer]):
    """A synchronous stream: iterate over the answers in one thread, `cancel` from any other."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def answers(self, operation: str) -> Iterator[Answer]:
        """The answers in order.

        Raises:
            RuntimeFault: as in `Rpc.unary`.
        """
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise from_rpc(operation, cast("RpcFailure", error)) from None

    def cancel(self) -> None:
        """End the stream; the server keeps what it has of an ingest."""
        self._call.cancel()


async def _settled(call: Any) -> Any:
    """The answer to a call that a cancellation does not interrupt at once."""
    answer = asyncio.ensure_future(_answer(call))
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        await asyncio.wait([answer], timeout=SETTLE_SECONDS)
        answer.cancel()
        await asyncio.wait([answer])
        # Looked at, lest asyncio reports it as lost.
        if not answer.cancelled():
            answer.exception()
        raise


async def _answer(call: Any) -> Any:
    return await call


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
