"""The warm parent of the workers: everything imported once, then one fork per job and nothing else.

It has one thread and no event loop, so that forking is safe; it is started before the agent has any. Its neighbour
in the agent is workers.py; its children are worker.py.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import hashlib
import importlib
import os
import resource
import select
import signal
import socket
import traceback
from typing import Any, NoReturn

import msgspec

from imageprepull.unpacking import kernel, worker
from imageprepull.unpacking.confine import Confinement, forbid_imports
from imageprepull.unpacking.messages import Ended, FromZygote, Kill, NotForked, Settings, Start, ToZygote

_PACKET = 4096
_OPEN_FILES = 4096
"""Also bounds what a worker closes one by one on old kernels."""
_KEPT_BY_MALLOC = 16 << 20
"""Bytes; more than the chunks that a worker has in hand at once."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""They go to whole process groups; the agent ends first, in its own time, and takes us along."""


def serve(control: int, parent: int, settings: Settings) -> NoReturn:
    """Be the zygote of `parent`, spoken to through the SOCK_SEQPACKET descriptor `control`. Never returns."""
    status = 1
    try:
        worker.die_with_parent(parent)
        kernel.name_process("unpack-zygote")
        _let_go(control)
        os.nice(settings.nice)
        Zygote(socket.socket(fileno=control), _prepare(settings)).run()
        status = 0
    except BaseException:  # noqa: BLE001 - this process ends here, whatever it is.
        traceback.print_exc()
    finally:
        os._exit(status)


def _let_go(control: int) -> None:
    """Leave what came from the parent: descriptors, signal handlers."""
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    # Not closerange up to the limit: before Linux 5.9 that is a million calls where there is no limit.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in {0, 1, 2, control}:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(descriptor)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        if signal.getsignal(number) not in {signal.SIG_DFL, None}:
            signal.signal(number, signal.SIG_DFL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prepare(settings: Settings) -> worker.Trade:
    """Import, warm up, leave the host. What goes wrong is told to whoever asks for a worker."""
    try:
        extract, inherit = _load(settings.extract), _load(settings.inherit)
        _warm_up()
        confinement = Confinement() if settings.confine else None
    except (ImportError, AttributeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return worker.Trade(trouble=f"workers cannot be had here: {reason}")
    kernel.keep_freed_memory(_KEPT_BY_MALLOC)
    forbid_imports()
    gc.collect()
    # What is there by now stays; a collection in a worker must not touch, and thereby copy, its pages.
    gc.freeze()
    return worker.Trade(extract, inherit, confinement)


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _warm_up() -> None:
    """Let libraries read their configuration and code now: later their paths would lead into a layer."""
    for encoding in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(encoding)
    hashlib.sha256(b"").hexdigest()


class Zygote:
    """Forks a worker for every `Start`, kills on `Kill`, tells of everyone that ended, until the agent hangs up."""

    def __init__(self, control: socket.socket, trade: worker.Trade) -> None:
        self._control = control
        self._control.setblocking(True)
        self._trade = trade
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        # A pidfd for each would do as well, on Linux 5.3 and above only.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Until the agent closes its end; then ends all workers."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        decoder = msgspec.msgpack.Decoder(ToZygote)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wake in ready:
                os.read(self._wake, _PACKET)
                self._reap(os.WNOHANG)
            if self._control.fileno() in ready:
                packet, descriptors, _, _ = socket.recv_fds(self._control, _PACKET, 1)
                if not packet:
                    break
                self._obey(decoder.decode(packet), descriptors)
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
        self._reap(0)

    def _obey(self, message: ToZygote, descriptors: list[int]) -> None:
        match message:
            case Start(number, nice):
                self._fork(number, nice, socket.socket(fileno=descriptors[0]))
            case Kill(number) if number in self._pids:
                # Not reaped yet, so the pid is nobody else's.
                os.kill(self._pids[number], signal.SIGKILL)
            case Kill():
                pass  # it ended meanwhile

    def _fork(self, number: int, nice: int, sock: socket.socket) -> None:
        me = os.getpid()
        with sock:
            try:
                pid = os.fork()
            except OSError as error:
                self._tell(NotForked(number, error.errno or 0))
                return
            if pid == 0:
                worker.run(sock, me, nice, self._trade)
        self._pids[number] = pid
        self._numbers[pid] = number

    def _reap(self, flags: int) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, flags)
            if pid == 0:
                return
            number = self._numbers.pop(pid)
            del self._pids[number]
            self._tell(Ended(number, status))

    def _tell(self, message: FromZygote) -> None:
        try:
            self._control.send(msgspec.msgpack.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            return  # the agent hung up: run() sees it too
