"""What agent, zygote and workers say to each other: MessagePack, and how it is framed on a stream.

Agent and zygote speak through a SOCK_SEQPACKET socket (`ToZygote`, `FromZygote`), agent and worker through a
SOCK_STREAM socket of their own for each job: a job and its answer may be longer than a packet.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

import msgspec

from imageprepull.unpacking.jobs import Refusal

MAX_FRAME = 64 << 20
"""Bytes; the longest job or answer. A worker is not trusted: the agent reads no more than this."""
DESCRIPTORS_AT_ONCE = 250
"""SCM_MAX_FD is 253."""

LENGTH = struct.Struct("!I")


class Settings(msgspec.Struct, frozen=True):
    """How a zygote is started. `extract`, `inherit`: the jobs' functions as `module:function`, imported there."""

    confine: bool = True
    nice: int = 0
    extract: str = "imageprepull.unpacking.layer:extract_layer"
    inherit: str = "imageprepull.unpacking.inherit:inherit"


class Start(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Fork a worker; its socket comes with the packet. `nice` is added to the zygote's."""

    number: int
    nice: int


class Kill(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End a worker, if it is still there."""

    number: int


class Ended(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A worker was reaped; `status` as wait(2) gives it."""

    number: int
    status: int


class NotForked(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """There is no worker for this number."""

    number: int
    errno: int


ToZygote = Start | Kill
FromZygote = Ended | NotForked


class Task(msgspec.Struct, frozen=True):
    """First frame to a worker; behind it come `descriptors` fds, the root first, then blob or lowers.

    `job`: an encoded ExtractJob or InheritJob. `held`: bytes of the blob that are there already.
    """

    kind: Literal["extract", "inherit", "probe"]
    job: bytes = b""
    descriptors: int = 0
    held: int = 0


class Held(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answer to `Beyond`."""

    held: int


class Hurry(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Somebody waits for the layer now: hold back no more. The only message that nobody asked for."""


class Beyond(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The worker waits for the frontier to pass `offset`."""

    offset: int


class Unpacked(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Progress: bytes of tar so far."""

    size: int


class Done(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The encoded result, empty where a job has none."""

    result: bytes = b""


class NotDone(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The job was refused."""

    refusal: Refusal


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The job met an OSError."""

    errno: int
    message: str
    path: bytes = b""


class Broken(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The worker could not be confined, or met something that it should not."""

    reason: str


ToWorker = Held | Hurry
FromWorker = Beyond | Unpacked | Done | NotDone | Failed | Broken


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def receive_frame(sock: socket.socket) -> bytes:
    """The next frame's body, from a blocking socket, and not a byte more. Raises EOFError."""
    (length,) = LENGTH.unpack(_receive(sock, LENGTH.size))
    return _receive(sock, length)


def receive_descriptors(sock: socket.socket, count: int) -> list[int]:
    """The fds that the agent sends behind a `Task`, one byte with each portion. Raises EOFError."""
    descriptors: list[int] = []
    while len(descriptors) < count:
        data, portion, _, _ = socket.recv_fds(sock, 1, DESCRIPTORS_AT_ONCE)
        descriptors += portion
        if not data:
            raise EOFError("the agent went away")
    return descriptors


def _receive(sock: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        portion = sock.recv(length - len(received))
        if not portion:
            raise EOFError("the agent went away")
        received += portion
    return bytes(received)
