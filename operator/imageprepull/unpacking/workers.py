"""Unpacking in other processes, as the agent sees it: `Workers` forks the zygote, then gives it jobs from the loop.

Below it zygote.py, which forks, and conversation.py, which talks to one worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from imageprepull.unpacking.conversation import Conversation, WorkerDied
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import Extracted, ExtractJob, InheritJob
from imageprepull.unpacking.messages import (
    Ended,
    FromZygote,
    Kill,
    NotForked,
    Settings,
    Start,
    Task,
    ToZygote,
)

__all__ = ["WorkerDied", "Workers"]

STALL = 600.0
"""Seconds without progress, and without waiting for the download, after which a worker is given up."""
_PROBE = 30.0
"""Seconds for the first answer; the zygote's imports take a fraction of one."""
_CLOSE = 5.0
"""Seconds for the zygote to go by itself."""
_PACKET = 4096
_DEFAULT = Settings()


class Workers:
    """One zygote and its workers. `why_not`: what the last `probe` found, None if nothing hinders.

    A zygote that died is not replaced: a process with threads must not fork. `alive` says so, every job raises
    WorkerDied, and the layers go the portable path.
    """

    def __init__(self, control: socket.socket, pid: int, *, confine: bool, stall: float = STALL) -> None:
        self.why_not: str | None = None
        self._control = control
        self._control.setblocking(False)
        self._pid = pid
        self._confine = confine
        self._stall = stall
        self._numbers = itertools.count(1)
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writable: asyncio.Future[None] | None = None
        self._decoder = msgspec.msgpack.Decoder(FromZygote)

    def __repr__(self) -> str:
        return f"<Workers zygote {self._pid}{'' if self.alive else ' (gone)'}, {len(self._ended)} at work>"

    @classmethod
    def start(
        cls,
        *,
        confine: bool = True,
        nice: int = 0,
        stall: float = STALL,
        extract: str = _DEFAULT.extract,
        inherit: str = _DEFAULT.inherit,
    ) -> Self:
        """Fork the zygote; it imports and confines itself while the caller goes on.

        To be called from the main thread, before any other thread, event loop or gRPC import: a fork copies locks
        as they are, and the zygote ends with the thread that forked it. What confinement lacks is found by `probe`.

        Raises:
            RuntimeError: there are threads already.
        """
        if threading.current_thread() is not threading.main_thread() or _threads() > 1:
            raise RuntimeError("Workers.start() comes too late: this process has threads")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                # Its imports are not the caller's: they would cost every start of an agent or a command.
                from imageprepull.unpacking.zygote import serve  # noqa: PLC0415

                serve(theirs.detach(), me, Settings(confine, nice, extract, inherit))
            finally:
                os._exit(1)  # whatever happens, this is not a second agent
        theirs.close()
        return cls(ours, pid, confine=confine, stall=stall)

    @property
    def alive(self) -> bool:
        """Whether the zygote is there; without it there is no unpacking here until the agent starts anew."""
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        return False

    async def extract(
        self,
        job: ExtractJob,
        *,
        root: int,
        blob: int,
        frontier: Frontier,
        progress: Callable[[int], None],
        nice: int = 0,
        hurry: asyncio.Event | None = None,
    ) -> Extracted:
        """Unpack the growing `blob` into the empty directory `root`; returns when its worker was reaped.

        `nice` is added to the one of `start`; `hurry` lifts the job's `dirty_bytes` when it is set. A cancellation ends and reaps the worker before it is raised.

        Raises:
            Refused: the layer's own fault, or beyond what is done here.
            OSError: from the file system, with the errno.
            WorkerDied: the worker's or the zygote's fault.
            Exception: what the frontier failed with.
        """
        task = Task("extract", msgspec.msgpack.encode(job), 2, frontier.held)
        with contextlib.ExitStack() as stack:
            views = [self._view(stack, root), self._view_of_file(stack, blob)]
            result = await self._run(task, views, frontier, progress, nice=nice, hurry=hurry)
        try:
            return msgspec.msgpack.decode(result, type=Extracted)
        except msgspec.MsgspecError as error:
            raise WorkerDied(f"sent what is no result: {error}") from error

    async def inherit(self, job: InheritJob, *, root: int, lowers: Sequence[int], nice: int = 0) -> None:
        """Give the implicit directories below `root` the attributes of `lowers`, top first. Raises as `extract`."""
        with contextlib.ExitStack() as stack:
            views = [self._view(stack, root)]
            views += [self._view(stack, lower, read_only=True) for lower in lowers]
            task = Task("inherit", msgspec.msgpack.encode(job), len(views))
            await self._run(task, views, None, lambda _: None, nice=nice)

    async def probe(self) -> str | None:
        """Try whether a worker can be had and confined; returns why not, and keeps it in `why_not`."""
        try:
            with contextlib.ExitStack() as stack:
                root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, root)
                view = self._view(stack, root)
                async with asyncio.timeout(_PROBE):
                    await self._run(Task("probe", b"", 1), [view], None, lambda _: None)
        except TimeoutError:
            self.why_not = f"no worker answered within {_PROBE:.0f} s"
        except (WorkerDied, OSError) as error:
            self.why_not = str(error)
        else:
            self.why_not = None
        return self.why_not

    async def close(self) -> None:
        """End the zygote, and whatever works still."""
        with contextlib.suppress(OSError):  # it hung up first
            self._control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE):
                while await asyncio.get_running_loop().sock_recv(self._control, _PACKET):
                    pass
        if self.alive:
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # reaped by another
            await asyncio.to_thread(os.waitpid, self._pid, 0)
        self._control.close()

    def _view(self, stack: contextlib.ExitStack, directory: int, *, read_only: bool = False) -> int:
        if not self._confine:
            return directory
        # Late for the same reason as the zygote's.
        from imageprepull.unpacking.confine import isolated_view  # noqa: PLC0415

        view = isolated_view(directory, read_only=read_only)
        stack.callback(os.close, view)
        return view

    def _view_of_file(self, stack: contextlib.ExitStack, file: int) -> int:
        if not self._confine:
            return file
        from imageprepull.unpacking.confine import isolated_file  # noqa: PLC0415 - as in _view

        view = isolated_file(file)
        stack.callback(os.close, view)
        return view

    async def _run(
        self,
        task: Task,
        descriptors: Sequence[int],
        frontier: Frontier | None,
        progress: Callable[[int], None],
        *,
        nice: int = 0,
        hurry: asyncio.Event | None = None,
    ) -> bytes:
        """One worker from fork to reaping; returns the encoded result."""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            ended = self._expect(number)
            conversation = Conversation(ours, self._stall, frontier, progress, hurry)
            try:
                with theirs:
                    await self._send(Start(number, nice), theirs.fileno())
                result = await conversation.hold(task, descriptors)
            except BaseException as error:
                try:
                    await self._end(number, ended, conversation)
                except (WorkerDied, OSError) as worse:
                    error.add_note(str(worse))
                raise
            # It may have answered and not gone, or have lost its socket only.
            status = await self._end(number, ended, conversation)
        if result is None:
            raise _death(status)
        return result

    async def _end(self, number: int, ended: asyncio.Future[int], conversation: Conversation) -> int:
        """Kill what is left of a worker and wait until it was reaped, however often the caller is cancelled."""
        work = asyncio.create_task(self._reaped(number, ended, conversation))
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
        self._forget(number)
        if cancelled is not None:
            work.exception()  # seen; the cancellation counts
            raise cancelled
        return work.result()

    async def _reaped(self, number: int, ended: asyncio.Future[int], conversation: Conversation) -> int:
        try:
            async with asyncio.timeout(self._stall):
                if not ended.done():
                    await self._send(Kill(number))
                try:
                    return await ended
                except WorkerDied:
                    # Without a zygote nobody tells: the kernel kills its children, then their sockets close.
                    await conversation.ended()
                    raise
        except TimeoutError as error:
            raise WorkerDied(
                f"did not end within {self._stall:.0f} s of being killed: its files may still change"
            ) from error

    def _expect(self, number: int) -> asyncio.Future[int]:
        """Listen to the zygote, in the loop that runs now, as long as there are workers."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            loop.add_reader(self._control.fileno(), self._hear)
            self._loop = loop
        self._ended[number] = ended = loop.create_future()
        return ended

    def _forget(self, number: int) -> None:
        del self._ended[number]
        if not self._ended and self._loop is not None:
            self._loop.remove_reader(self._control.fileno())
            self._loop = None

    def _hear(self) -> None:
        try:
            packet = self._control.recv(_PACKET)
        except BlockingIOError:
            return
        except ConnectionResetError:
            packet = b""
        if not packet:
            self._lost()
            return
        message = self._decoder.decode(packet)
        ended = self._ended.get(message.number)
        if ended is None or ended.done():
            return
        match message:
            case Ended(_, status):
                ended.set_result(status)
            case NotForked(_, number):
                ended.set_exception(OSError(number, f"cannot fork a worker: {os.strerror(number)}"))

    def _lost(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._control.fileno())
        for ended in self._ended.values():
            if not ended.done():
                ended.set_exception(WorkerDied("the workers' parent process died"))

    async def _send(self, message: ToZygote, *descriptors: int) -> None:
        """To the zygote; waits where it has some hundred packets to read, as while it still imports."""
        packet = msgspec.msgpack.encode(message)
        while True:
            try:
                socket.send_fds(self._control, [packet], descriptors)
            except BlockingIOError:
                await self._room()
            except (BrokenPipeError, ConnectionResetError):
                return self._lost()
            else:
                return None

    async def _room(self) -> None:
        """Wait until the control socket takes packets again; all who wait share one watch."""
        loop = asyncio.get_running_loop()
        if self._writable is None or self._writable.done():
            self._writable = loop.create_future()
            loop.add_writer(self._control.fileno(), self._has_room, self._writable)
        await asyncio.wait([self._writable])

    def _has_room(self, writable: asyncio.Future[None]) -> None:
        asyncio.get_running_loop().remove_writer(self._control.fileno())
        writable.set_result(None)


def _death(status: int) -> WorkerDied:
    """Of a worker that did not answer, from its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return WorkerDied(f"killed by {signal.Signals(-code).name}", signal=-code)
    return WorkerDied(f"ended with exit status {code} and no answer", exit_code=code)


def _threads() -> int:
    """Also those that Python does not know."""
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return threading.active_count()
