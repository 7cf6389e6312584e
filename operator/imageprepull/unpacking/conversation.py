"""The agent's end of one worker's socket: sends the job, answers for the frontier, passes progress on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.messages import (
    DESCRIPTORS_AT_ONCE,
    LENGTH,
    MAX_FRAME,
    Beyond,
    Broken,
    Done,
    Failed,
    FromWorker,
    Held,
    Hurry,
    NotDone,
    Task,
    ToWorker,
    Unpacked,
    frame,
)

_RECEIVE = 256 << 10


class WorkerDied(Exception):
    """A worker gave no answer, or not one that may be believed. `signal` or `exit_code` say how it ended, if known."""

    def __init__(self, reason: str, *, signal: int | None = None, exit_code: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.signal = signal
        self.exit_code = exit_code


class Conversation:
    """With one worker. `stall`: seconds without a word after which it is given up; waiting for the frontier is free.

    When `hurry` is set, the worker is told so.
    """

    def __init__(
        self,
        sock: socket.socket,
        stall: float,
        frontier: Frontier | None,
        progress: Callable[[int], None],
        hurry: asyncio.Event | None = None,
    ) -> None:
        self._sock = sock
        self._stall = stall
        self._frontier = frontier
        self._progress = progress
        self._hurry = hurry
        self._received = bytearray()
        self._decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)

    async def hold(self, task: Task, descriptors: Sequence[int]) -> bytes | None:
        """Send the job, stay until it is answered; returns the encoded result, None if the worker is gone.

        Raises:
            Refused: the worker's refusal.
            OSError: the worker's, with its errno.
            WorkerDied: no word for `stall` seconds, not confined, a bug in it, or an answer that makes no sense.
            Exception: what the frontier failed with.
        """
        try:
            async with asyncio.timeout(self._stall):
                await self._send_task(task, descriptors)
        except TimeoutError as error:
            raise WorkerDied(f"stalled: took no job for {self._stall:.0f} s") from error
        except (BrokenPipeError, ConnectionResetError):
            return None
        match await self._answer():
            case Done(result):
                return result
            case NotDone(refusal):
                raise Refused(refusal.reason, refusal.message, entry=refusal.entry, final=refusal.final)
            case Failed(number, message, path):
                raise OSError(number, message, os.fsdecode(path)) if path else OSError(number, message)
            case Broken(reason):
                raise WorkerDied(reason)
            case _:
                return None

    async def ended(self) -> None:
        """Wait until no process has the worker's end open: the last thread of it is gone."""
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(self._sock, _RECEIVE):
                pass
        except ConnectionResetError:
            return

    async def _send_task(self, task: Task, descriptors: Sequence[int]) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, frame(task))
        for start in range(0, len(descriptors), DESCRIPTORS_AT_ONCE):
            # One byte a time, in a buffer that the worker just emptied: this never blocks.
            socket.send_fds(self._sock, [b"\0"], list(descriptors[start : start + DESCRIPTORS_AT_ONCE]))

    async def _answer(self) -> FromWorker | None:
        reading = asyncio.ensure_future(self._next())
        asking: asyncio.Future[int] | None = None
        hurrying = asyncio.ensure_future(self._hurry.wait()) if self._hurry is not None else None
        waiting: set[asyncio.Future[Any]]
        try:
            while True:
                waiting = {future for future in (reading, asking, hurrying) if future is not None}
                done, _ = await asyncio.wait(
                    waiting,
                    timeout=self._stall if asking is None else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    raise WorkerDied(f"stalled: no progress for {self._stall:.0f} s")
                if asking is not None and asking in done:
                    await self._tell(Held(asking.result()))
                    asking = None
                if hurrying is not None and hurrying in done:
                    await self._tell(Hurry())
                    hurrying = None
                if reading in done:
                    message = reading.result()
                    if isinstance(message, Beyond) and self._frontier is not None and asking is None:
                        asking = asyncio.ensure_future(self._frontier.beyond(message.offset))
                    elif isinstance(message, Beyond):
                        raise WorkerDied("asked for a frontier out of turn")
                    elif isinstance(message, Unpacked):
                        self._progress(message.size)
                    else:
                        return message
                    reading = asyncio.ensure_future(self._next())
        finally:
            await _cancelled(reading, asking, hurrying)

    async def _tell(self, message: ToWorker) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, frame(message))
        except (BrokenPipeError, ConnectionResetError):
            return  # the end of what can be read says so too

    async def _next(self) -> FromWorker | None:
        """The next message; None at the end."""
        loop = asyncio.get_running_loop()
        wanted = LENGTH.size
        while True:
            if len(self._received) >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._received)
                if length > MAX_FRAME:
                    raise WorkerDied(f"sent a message of {length} bytes")
                wanted = LENGTH.size + length
            if len(self._received) >= wanted > LENGTH.size:
                body = bytes(self._received[LENGTH.size : wanted])
                del self._received[:wanted]
                try:
                    return self._decoder.decode(body)
                except msgspec.MsgspecError as error:
                    raise WorkerDied(f"sent what is no message: {error}") from error
            try:
                portion = await loop.sock_recv(self._sock, _RECEIVE)
            except ConnectionResetError:
                return None
            if not portion:
                return None
            self._received += portion


async def _cancelled(*futures: asyncio.Future[Any] | None) -> None:
    """End what is still under way, and whatever it raises: the outcome is decided."""
    pending = [future for future in futures if future is not None]
    for future in pending:
        future.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
