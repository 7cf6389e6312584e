"""One worker process, from its fork to its end: takes a job from its socket, confines itself, does it, answers.

Forked by zygote.py; the agent's end of the socket is conversation.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from imageprepull.unpacking import kernel
from imageprepull.unpacking.confine import Confinement
from imageprepull.unpacking.jobs import Extracted, ExtractJob, InheritJob, Refusal, Refused
from imageprepull.unpacking.messages import (
    MAX_FRAME,
    Beyond,
    Broken,
    Done,
    Failed,
    FromWorker,
    Hurry,
    NotDone,
    Task,
    ToWorker,
    Unpacked,
    frame,
    receive_descriptors,
    receive_frame,
)

PROGRESS_BYTES = 16 << 20
PROGRESS_SECONDS = 0.1
# Made in the zygote: what a decoder needs to be made cannot be imported later.
_FROM_AGENT: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

Extract = Callable[
    [ExtractJob, int, int, Callable[[int], int], Callable[[int], None], Callable[[], bool]], Extracted
]
Inherit = Callable[[InheritJob, int, Sequence[int]], None]


@dataclass(frozen=True)
class Trade:
    """What the zygote has ready for its workers. `trouble`: why they cannot work."""

    extract: Extract | None = None
    inherit: Inherit | None = None
    confinement: Confinement | None = None
    trouble: str = ""


def run(sock: socket.socket, zygote: int, nice: int, trade: Trade) -> NoReturn:
    """Be a worker. Never returns; the exit status is 0 if an answer was sent, or the agent is gone."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(zygote)
        kernel.name_process("unpack-worker")
        os.nice(nice)
        _serve(sock, trade)
        status = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 0
    finally:
        os._exit(status)


def die_with_parent(parent: int) -> None:
    """Get SIGKILL when the parent's main thread, which must have forked this process, ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def close_all_but(kept: Sequence[int]) -> None:
    """Close every other descriptor below this process's limit."""
    low = 0
    for descriptor in sorted(kept):
        if low < descriptor:  # CPython 3.11 takes (0, 0) for everything
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def _serve(sock: socket.socket, trade: Trade) -> None:
    task = msgspec.msgpack.decode(receive_frame(sock), type=Task)
    descriptors = receive_descriptors(sock, task.descriptors)
    os.dup2(0, 2)  # /dev/null: what is written to stderr would be a way out
    close_all_but([0, 1, 2, sock.fileno(), *descriptors])
    channel = Channel(sock, task.held)
    if trade.trouble:
        channel.send(Broken(trade.trouble))
        return
    try:
        if trade.confinement is not None:
            trade.confinement.enter(descriptors[0])
    except OSError as error:
        channel.send(Broken(f"a worker cannot be confined: {error.strerror or error}"))
        return
    channel.send(_perform(task, descriptors, channel, trade))


def _perform(task: Task, descriptors: Sequence[int], channel: Channel, trade: Trade) -> FromWorker:
    """Do the job; whatever comes of it is an answer."""
    try:
        result = b""
        if task.kind == "extract" and trade.extract is not None:
            job = msgspec.msgpack.decode(task.job, type=ExtractJob)
            root, blob = descriptors
            channel.size = job.size
            result = msgspec.msgpack.encode(
                trade.extract(job, blob, root, channel.frontier, channel.progress, channel.hurried)
            )
        elif task.kind == "inherit" and trade.inherit is not None:
            trade.inherit(msgspec.msgpack.decode(task.job, type=InheritJob), descriptors[0], descriptors[1:])
        elif task.kind == "probe":
            _start_a_thread()
        if len(result) > MAX_FRAME - 1024:
            return NotDone(
                Refusal(reason="ImplicitDirectories", message="it implies too many directories", final=True)
            )
        return Done(result)
    except Refused as error:
        return NotDone(error.refusal)
    except MemoryError:
        # Whoever asks for so much is not handed on: the runtime's own unpacker has no bound at all.
        return NotDone(
            Refusal(reason="LayerTooLarge", message="it takes more memory than a worker has", final=True)
        )
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | bytes) else b""
        return Failed(error.errno or errno.EIO, error.strerror or str(error), os.fsencode(named)[:4096])
    except Exception as error:  # noqa: BLE001 - it must become an answer; nobody else sees it.
        return Broken(_describe(error))


def _start_a_thread() -> None:
    """What the C library does for it must pass the filter."""
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()


def _describe(error: BaseException) -> str:
    """One line. No source text: it would be read through the layer's root."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" at {where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
    return f"{type(error).__name__}: {error}{place}"[:2000]


class Channel:
    """A worker's end of its socket. Its methods may be called from different threads."""

    def __init__(self, sock: socket.socket, held: int, size: int = 0) -> None:
        self.size = size
        self._sock = sock
        self._held = held
        self._hurried = False
        self._asking = threading.Lock()
        self._sending = threading.Lock()
        self._reported = 0
        self._reported_at = 0.0

    def frontier(self, offset: int) -> int:
        """Block until more than `offset` bytes of the blob are there, or all; returns how many."""
        with self._asking:
            if self._held <= offset and self._held < self.size:
                self.send(Beyond(offset))
                try:
                    while isinstance(message := self._receive(), Hurry):
                        self._hurried = True
                    self._held = message.held
                except (EOFError, ConnectionResetError):
                    os._exit(0)  # the agent is gone, and in this thread nobody would hear of it
            return self._held

    def hurried(self) -> bool:
        """Whether the agent has said that somebody waits; never blocks."""
        # Who asks for the frontier reads whatever comes meanwhile; else nothing but this can have come.
        if not self._hurried and self._asking.acquire(blocking=False):
            try:
                # No word yet, or none any more: who sends or asks next will see that the agent is gone.
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    if self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                        self._hurried = isinstance(self._receive(), Hurry)
            finally:
                self._asking.release()
        return self._hurried

    def progress(self, unpacked: int) -> None:
        """Say how many bytes were unpacked; cheap, and never waits for an agent that is busy."""
        now = time.monotonic()
        if unpacked - self._reported < PROGRESS_BYTES and now - self._reported_at < PROGRESS_SECONDS:
            return
        if unpacked == self._reported or not self._sending.acquire(blocking=False):
            return
        try:
            # So short a frame is sent whole or not at all: unix(7) streams queue it as one buffer.
            with contextlib.suppress(BlockingIOError):
                self._sock.send(frame(Unpacked(unpacked)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._reported, self._reported_at = unpacked, now
        finally:
            self._sending.release()

    def _receive(self) -> ToWorker:
        return _FROM_AGENT.decode(receive_frame(self._sock))

    def send(self, message: FromWorker) -> None:
        """Send a message whole."""
        with self._sending:
            self._sock.sendall(frame(message))
