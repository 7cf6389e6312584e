"""How far a hostile layer could get if it took over a worker: the zygote isolates itself once, each worker goes on.

The zygote leaves the host's mounts and network. A worker then sees one directory, has seven capabilities, and can
neither make sockets nor processes nor map code. What stays: it writes into its own staging directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.machinery
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from imageprepull.unpacking import capabilities, kernel
from imageprepull.unpacking.seccomp import Filter

_HEADROOM = 512 << 20
"""Bytes of address space for a worker's own work: buffers, a 32 MiB window, stacks and malloc arenas of threads."""
_OPEN_FILES = 4096


class _NoImports:
    """Last of all finders. A worker's file system is the layer: a late import would run what it brought along."""

    @classmethod
    def find_spec(
        cls,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG003 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG003
    ) -> importlib.machinery.ModuleSpec | None:
        raise ImportError(f"{name} is not imported in the zygote, and a worker can import nothing", name=name)


def forbid_imports() -> None:
    """From here on only what is in sys.modules can be imported."""
    sys.meta_path[:] = [_NoImports]
    # The C library loads this when a thread is cancelled; later it would look for it in the layer.
    with contextlib.suppress(OSError):  # musl has none, and needs none
        ctypes.CDLL("libgcc_s.so.1")


class Confinement:
    """Made in the zygote, while it is still free; used by its workers.

    Raises:
        OSError: this kernel, machine or container cannot confine; the message says what lacks.
    """

    def __init__(self) -> None:
        if lacking := capabilities.missing():
            raise OSError(errno.EPERM, f"lacks {', '.join(lacking)}")
        self._filter = Filter()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        self._address_space = pages * resource.getpagesize() + _HEADROOM
        _be_killed_first()
        _leave_the_host()
        capabilities.limit_bounding(capabilities.NEEDED.values())
        capabilities.limit_to([*capabilities.NEEDED.values(), capabilities.CAP_SYS_CHROOT])

    def enter(self, root: int) -> None:
        """Confine this process to the directory `root`, for good. Raises OSError."""
        os.fchdir(root)
        os.chroot(".")
        os.umask(0)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
        _limit(resource.RLIMIT_AS, self._address_space)
        capabilities.limit_to(capabilities.NEEDED.values())
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        self._filter.install()


def isolated_view(directory: int, *, read_only: bool = False) -> int:
    """What a worker gets instead of the open `directory`: the same files on a mount that leads nowhere else.

    Device nodes on it cannot be opened: CAP_MKNOD would else mean the host's disks. Before Linux 5.12 it is the
    directory itself: chroot still holds a worker there, device nodes and the lower layers' `..` do not. Returns a
    new fd.
    """
    return _view(directory, kernel.MOUNT_ATTR_RDONLY if read_only else 0, ".")


def isolated_file(file: int) -> int:
    """The same for the blob, whose owner and attributes a worker could else change, though it cannot write to it."""
    return _view(file, kernel.MOUNT_ATTR_RDONLY, "/proc/self/fd/{}")


def _view(opened: int, attributes: int, reopen: str) -> int:
    attributes |= kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
    try:
        return kernel.detached_mount(opened, attributes, reopen)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EINVAL}:
            raise
        return os.dup(opened)


def _limit(kind: int, value: int) -> None:
    """Lower a limit; never above what is allowed already."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _be_killed_first() -> None:
    """Let the OOM killer take a worker and not the agent: the agent then unpacks by the portable path."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # read-only /proc: an order of preference, no more
        score.write_text(str(min(1000, int(score.read_text(encoding="ascii")) + 100)), encoding="ascii")


def _leave_the_host() -> None:
    """Own namespaces, and an empty root: a copy of the host's mounts would keep what it unmounts busy."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    # Any directory that exists in every image will do.
    kernel.mount("empty", "/dev", "tmpfs", flags, "size=4k,mode=0555")
    os.chdir("/dev")
    # The old root lands on top of the new one, where it is taken off.
    kernel.pivot_root(".", ".")
    kernel.unmount(".", kernel.MNT_DETACH)
    os.chdir("/")
