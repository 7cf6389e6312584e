"""The first difference between a layer that was just unpacked and the same layer as it lies on the disk.

It finds what a power cut or a bad disk does: files that are empty, cut off, gone or filled with something else.
Attributes of directories are left out: those that a layer does not list have them from the layers below.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME


def first_difference(expected: Path, found: Path) -> str:
    """In words, "" for none. Blocks while it reads both trees; `found` is read from the disk, not from its cache.

    Raises:
        OSError: `expected` cannot be read. What cannot be read of `found` is a difference.
    """
    pending = [Path()]
    while pending:
        below = pending.pop()
        left = _entries(expected / below)
        try:
            right = _entries(found / below)
        except OSError as error:
            return f"{_shown(below)} cannot be read: {error.strerror}"
        for name in sorted(left.keys() | right.keys()):
            path = below / name
            if name not in right:
                return f"{_shown(path)} is missing"
            if name not in left:
                return f"{_shown(path)} is not in the layer"
            said = _attributes(left[name], right[name])
            if not said and not stat.S_ISDIR(left[name].st_mode):
                said = _contents(expected / path, found / path, left[name])
            if said:
                return f"{_shown(path)} {said}"
            if stat.S_ISDIR(left[name].st_mode):
                pending.append(path)
    return ""


def _entries(folder: Path) -> dict[str, os.stat_result]:
    with os.scandir(folder) as found:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in found}


def _attributes(left: os.stat_result, right: os.stat_result) -> str:
    if stat.S_IFMT(left.st_mode) != stat.S_IFMT(right.st_mode):
        return "is of another type"
    if stat.S_ISDIR(left.st_mode):
        return ""
    if (left.st_mode, left.st_uid, left.st_gid) != (right.st_mode, right.st_uid, right.st_gid):
        return "has another owner or mode"
    if left.st_rdev != right.st_rdev:
        return "is another device"
    if left.st_size != right.st_size:
        return f"has {right.st_size} bytes instead of {left.st_size}"
    return ""


def _contents(one: Path, other: Path, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "" if one.readlink() == other.readlink() else "leads elsewhere"
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return ""
    left = os.open(one, _FILE)
    try:
        return _bytes(left, other)
    finally:
        os.close(left)


def _bytes(left: int, other: Path) -> str:
    try:
        right = os.open(other, _FILE)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        os.posix_fadvise(right, 0, 0, os.POSIX_FADV_DONTNEED)
        while expected := os.read(left, _CHUNK):
            try:
                found = os.read(right, len(expected))
            except OSError as error:
                return f"cannot be read: {error.strerror}"
            if found != expected:
                return "has other bytes"
    finally:
        os.close(right)
    return ""


def _shown(path: Path) -> str:
    """Names in layers need not be UTF-8."""
    return "/" + os.fsencode(path).decode("utf-8", "backslashreplace").removeprefix(".")
