"""The Linux calls that confinement needs and Python 3.11 does not offer. Errors are OSError with the call's name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

# mallopt(3); 32 MiB is the most that glibc takes for the second.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_FROM_ARENA = 32 << 20

# The C library wraps none of these on the oldest distribution that has our Python.
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "open_tree": 428, "mount_setattr": 442},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "open_tree": 428, "mount_setattr": 442},
}

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int = 0) -> int:
    """Ask or tell the kernel about this process; only one argument matters in what we use."""
    result: int = _libc.prctl(
        option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
    )
    return _checked(result, f"prctl({option}, {argument})")


def name_process(name: str) -> None:
    """What `ps -o comm` and the OOM killer's report show; 15 bytes."""
    text = ctypes.create_string_buffer(name.encode())
    prctl(PR_SET_NAME, ctypes.addressof(text))


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for new ones; os.unshare is Python 3.12."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, or change how something is mounted."""
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    option_text = None if options is None else options.encode()
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), option_text), f"mount {target}")


def unmount(target: str, flags: int) -> None:
    """Take a mount away."""
    _checked(_libc.umount2(target.encode(), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Exchange the root of this mount namespace."""
    syscall("pivot_root", ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))


def detached_mount(opened: int, attributes: int, reopen: str) -> int:
    """A mount of an open directory and what is below it, or of one file, attached nowhere; an fd of its root.

    `..` ends at its root, whatever a process that holds the fd tries. `reopen` is the path under which an O_PATH
    descriptor is opened for reading: "." in it for a directory, its name in /proc for a file.

    Raises:
        OSError: ENOSYS before Linux 5.12 (mount_setattr), EPERM without CAP_SYS_ADMIN.
    """
    empty = ctypes.c_char_p(b"")
    tree = syscall(
        "open_tree",
        ctypes.c_int(opened),
        empty,
        ctypes.c_uint(OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, tree)
        wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
        syscall(
            "mount_setattr",
            ctypes.c_int(tree),
            empty,
            ctypes.c_uint(AT_EMPTY_PATH),
            ctypes.byref(wanted),
            ctypes.c_size_t(ctypes.sizeof(wanted)),
        )
        # open_tree gives an O_PATH descriptor: no listing, no reading.
        return os.open(reopen.format(tree), os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree)


def keep_freed_memory(most: int) -> None:
    """Let malloc keep up to `most` freed bytes of an arena, and serve pieces up to 32 MiB from arenas.

    By default every MiB that is freed goes back to the kernel, which clears each page again when the next one is
    taken: a tenth of the time of unpacking a gzip layer. No effect where the C library has no such knobs (musl).
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(most))
        mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(_LARGEST_FROM_ARENA))


def syncfs(descriptor: int) -> None:
    """Write everything of a file system to disk; the os module lacks it."""
    _checked(_libc.syncfs(ctypes.c_int(descriptor)), "syncfs")


def syscall(name: str, *arguments: object) -> int:
    """A call by its number. ctypes values only: an int would be cut to 32 bits."""
    number = _NUMBERS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(f"no number of {name} known for {platform.machine()}")
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    return _checked(result, name)


def capset(header: ctypes.Array[ctypes.c_uint32], sets: ctypes.Array[ctypes.c_uint32]) -> None:
    """Set this thread's capabilities."""
    _checked(_libc.capset(header, sets), "capset")


def capget(header: ctypes.Array[ctypes.c_uint32], sets: ctypes.Array[ctypes.c_uint32]) -> None:
    """Read this thread's capabilities into `sets`."""
    _checked(_libc.capget(header, sets), "capget")


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
