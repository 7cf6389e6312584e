"""What the workers of the tests do: the blob holds the name of a function of this module and its argument.

The zygote imports `extract` and `inherit` by name, as it does with the real ones.
"""

# pathlib knows no directory handles.
# ruff: noqa: PTH115, PTH116, PTH208

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import isal.igzip_lib  # noqa: F401 - what the real one has loaded counts for memory and time.
import zstandard  # noqa: F401

from imageprepull.unpacking.jobs import Extracted, ExtractJob, ImplicitDirectory, InheritJob, Refused
from imageprepull.unpacking.layer import extract_layer

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Scene:
    job: ExtractJob
    blob: int
    root: int
    frontier: Callable[[int], int]
    progress: Callable[[int], None]
    hurried: Callable[[], bool]


def extract(  # noqa: PLR0917 - the real one's.
    job: ExtractJob,
    blob: int,
    root: int,
    frontier: Callable[[int], int],
    progress: Callable[[int], None],
    hurried: Callable[[], bool],
) -> Extracted:
    name, _, argument = os.pread(blob, 4096, 0).rstrip(b"\0").decode().partition(" ")
    answer = globals()[name](
        Scene(job, blob, root, frontier, progress, hurried), json.loads(argument or "null")
    )
    if isinstance(answer, Extracted):
        return answer
    return Extracted(diff_id=json.dumps(answer), unpacked_bytes=0, entries=0)


def inherit(job: InheritJob, root: int, lowers: Sequence[int]) -> None:
    """Writes down what it got: the inodes of the lower directories, and what `..` of them is."""
    inodes = [os.stat(".", dir_fd=lower).st_ino for lower in lowers]
    above = []
    for lower in lowers[:1]:
        os.fchdir(lower)
        above.append(os.stat("../../../..").st_ino)
        above.append(os.stat("..", dir_fd=lower).st_ino)
    refused = ""
    try:
        os.close(os.open("written", os.O_WRONLY | os.O_CREAT, dir_fd=lowers[0]))
    except OSError as error:
        refused = errno.errorcode[error.errno or 0]
    descriptor = os.open("seen", os.O_WRONLY | os.O_CREAT, dir_fd=root)
    seen = {"jobs": len(job.implicit), "inodes": inodes, "above": above, "refused": refused}
    os.write(descriptor, json.dumps(seen).encode())


def noop(scene: Scene, _: None) -> str:
    return "done"


def refuse(scene: Scene, _: None) -> None:
    raise Refused("Bomb", "too big", entry=b"a/\xff", final=True)


def no_space(scene: Scene, _: None) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")


def stumble(scene: Scene, _: None) -> None:
    raise ZeroDivisionError("of all things")


def exit_with(scene: Scene, code: int) -> None:
    os._exit(code)


def end_by(scene: Scene, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def hang(scene: Scene, _: None) -> None:
    scene.progress(1)
    time.sleep(600)


def until_hurried(scene: Scene, _: None) -> list[object]:
    """Whether it was so at first, and that the frontier is answered after it as before."""
    first = scene.hurried()
    scene.progress(1)
    while not scene.hurried():
        time.sleep(0.001)
    return [first, *follow(scene, None)]


def hurried_while_waiting(scene: Scene, _: None) -> list[object]:
    first = scene.hurried()
    return [first, *follow(scene, None), scene.hurried()]


def follow(scene: Scene, _: None) -> list[int]:
    seen = [scene.frontier(0)]
    while seen[-1] < scene.job.size:
        seen.append(scene.frontier(seen[-1]))
    return seen


def two_threads(scene: Scene, rounds: int) -> list[int]:
    """Reads in one thread, reports in the other."""
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(follow(scene, None)))
    reader.start()
    total = 0
    while reader.is_alive() or total < rounds << 25:
        total += 1 << 25
        scene.progress(total)
    reader.join()
    return seen[-1:]


def report_often(scene: Scene, times: int) -> None:
    for number in range(1, times + 1):
        scene.progress(number)


def imply(scene: Scene, count: int) -> Extracted:
    return Extracted(
        diff_id="sha256:0",
        unpacked_bytes=1,
        entries=2,
        implicit=tuple(
            ImplicitDirectory(b"d/%d\xff" % number, listed=False, below=True, used=True)
            for number in range(count)
        ),
    )


def babble(scene: Scene, _: None) -> None:
    sock = socket.socket(fileno=_socket(scene))
    sock.send(struct.pack("!I", 3) + b"abc")
    time.sleep(60)


def shout(scene: Scene, _: None) -> None:
    sock = socket.socket(fileno=_socket(scene))
    sock.send(struct.pack("!I", 0xFFFFFFFF))
    time.sleep(60)


def _socket(scene: Scene) -> int:
    return next(
        fd
        for fd in range(3, 64)
        if fd not in {scene.blob, scene.root} and Path(f"/proc/self/fd/{fd}").exists()
    )


def descriptors(scene: Scene, _: None) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(found)


def niceness(scene: Scene, _: None) -> int:
    return os.nice(0)


def private_memory(scene: Scene, _: None) -> int:
    """Kilobytes that this worker shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def late_import(scene: Scene, folder: str) -> str:
    Path(folder, "evil.py").write_text("import os\n", encoding="ascii")
    sys.path.insert(0, folder)
    try:
        importlib.import_module("evil")
    except ImportError as error:
        return str(error)
    return "imported"


def limits(scene: Scene, _: None) -> dict[str, int]:
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "space": resource.getrlimit(resource.RLIMIT_AS)[0],
        "umask": os.umask(0),
    }


def grow(scene: Scene, size: int) -> str:
    try:
        return f"got {len(bytes(size))}"
    except MemoryError:
        return "refused"


def unpack(scene: Scene, asked: tuple[str, int]) -> dict[str, Any]:
    """A layer for real. Whether another thread inflates it, and the pages that the kernel had to give meanwhile."""
    path, threads = asked
    inflating = set[int]()
    blob = os.open(path, os.O_RDONLY)
    size = os.fstat(blob).st_size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    extract_layer(
        ExtractJob(size=size, detect=True, bottom=True, threads=threads),
        blob,
        scene.root,
        lambda _: size,
        lambda _: inflating.add(threading.get_ident()),
        lambda: False,
    )
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"beside": inflating != {threading.get_ident()}, "faults": faults}


def take_and_free(scene: Scene, size: int) -> list[int]:
    """Bytes of anonymous memory before, with `size` of it in pieces as large as chunks, and after."""
    seen = [_anonymous()]
    pieces = [b"x" * (1 << 20) for _ in range(size >> 20)]
    seen.append(_anonymous())
    pieces.clear()
    seen.append(_anonymous())
    return seen


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def call(scene: Scene, numbers: Sequence[int]) -> str:
    """One system call with the arguments given; the errno's name, "allowed" where it succeeds."""
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(number) for number in numbers))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"


def attempt(scene: Scene, what: str) -> str:
    try:
        _ATTEMPTS[what](scene)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


def _start_program(scene: Scene) -> None:
    os.execve("/bin/true", ["true"], {})


def _map_code(scene: Scene) -> None:
    libc.mmap.restype = ctypes.c_void_p
    found = libc.mmap(None, ctypes.c_size_t(4096), 5, 0x22, -1, ctypes.c_long(0))
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")


def _open_device(scene: Scene) -> None:
    os.mknod("null", 0o020666, os.makedev(1, 3))
    os.open("null", os.O_RDWR)


_ATTEMPTS: dict[str, Callable[[Scene], Any]] = {
    "inet socket": lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix socket": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "socket pair": lambda _: socket.socketpair(),
    "chroot": lambda _: os.chroot("/"),
    "fork": lambda _: os.fork(),
    "exec": _start_program,
    "signal the parent": lambda _: os.kill(os.getppid(), 0),
    "map code": _map_code,
    "open a device": _open_device,
    "change the blob's mode": lambda scene: os.fchmod(scene.blob, 0o777),
    "change the blob's attributes": lambda scene: os.setxattr(scene.blob, "user.mine", b"1"),
}


def outside(scene: Scene, _: None) -> dict[str, Any]:
    """What a directory handle and `..` lead to."""
    root = os.stat(scene.root).st_ino
    os.fchdir(scene.root)
    os.chdir("../../..")
    return {
        "cwd": os.stat(".").st_ino == root,
        "slash": os.stat("/").st_ino == root,
        "above": os.stat("../..", dir_fd=scene.root).st_ino == root,
        "names": sorted(os.listdir("/")),
    }
