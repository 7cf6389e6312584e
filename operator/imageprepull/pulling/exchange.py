"""The one moment at which a staged tree becomes a layer: two directories swap their places, or nothing happens.

Called by staging.py with the worker reaped and implicit directories mended; blocks on the disk, so in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

RENAME_EXCHANGE = 2
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_PLACE_OF_EXCHANGE = (errno.EINVAL, errno.ENOSYS)
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(staged: Path, prepared: Path) -> None:
    """Put the tree `staged` where the runtime prepared the layer's own, empty directory, and that in its place.

    The root of a layer has the owner and mode that the runtime gave it, never those of the tar: an entry `./` of
    mode 0700 would shut every user of the image out. What else the root has (times, an opaque mark) moves along.

    Raises:
        OSError: nothing was moved.
    """
    ours = os.open(staged, os.O_RDONLY | _FOLDER)
    theirs = os.open(prepared, os.O_RDONLY | _FOLDER)
    try:
        root = os.fstat(theirs)
        os.fchown(ours, root.st_uid, root.st_gid)
        os.fchmod(ours, stat.S_IMODE(root.st_mode))
    finally:
        os.close(ours)
        os.close(theirs)
    source = os.open(staged.parent, os.O_PATH | _FOLDER)
    target = os.open(prepared.parent, os.O_PATH | _FOLDER)
    try:
        _swap(source, staged.name, target, prepared.name, stat.S_IMODE(root.st_mode))
    finally:
        os.close(source)
        os.close(target)


def _swap(source: int, staged: str, target: int, prepared: str, mode: int) -> None:
    number = _renameat2(source, staged, target, prepared)
    if number == 0:
        return
    if number not in _IN_PLACE_OF_EXCHANGE:
        raise OSError(number, os.strerror(number), prepared)
    # File systems without it (old NFS, some FUSE). The runtime measures the folder that is left behind, and would
    # log an error every ten seconds if there were none.
    os.rename(staged, prepared, src_dir_fd=source, dst_dir_fd=target)
    os.mkdir(staged, mode, dir_fd=source)


def _renameat2(source: int, old: str, target: int, new: str) -> int:
    """renameat2(2) with RENAME_EXCHANGE, which the os module lacks; the errno, 0 for success."""
    try:
        call = _libc.renameat2
    except AttributeError:  # a C library older than Linux 3.15's
        return errno.ENOSYS
    done: int = call(source, os.fsencode(old), target, os.fsencode(new), ctypes.c_uint(RENAME_EXCHANGE))
    return ctypes.get_errno() if done else 0
