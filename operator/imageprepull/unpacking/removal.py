"""Removing what an entry replaces or a whiteout of the bottom layer names: the whole tree, links not followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from enum import Enum


class Removed(Enum):
    """What was removed: nothing, something that no path leads through, or a directory or a link."""

    NOTHING = 0
    LEAF = 1
    WAY = 2


def remove_tree(path: bytes, gone: Callable[[bytes], None]) -> Removed:
    """Remove `path` with all below it; `gone` is told of every directory.

    Raises:
        OSError: it cannot be looked at or removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return Removed.NOTHING
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return Removed.WAY if stat.S_ISLNK(mode) else Removed.LEAF
    # Not shutil.rmtree: it recurses, and trees may be deeper than Python's stack.
    directories = [path]
    for child, is_directory in walk(path):
        if is_directory:
            directories.append(child)
        else:
            os.unlink(child)
    for directory in reversed(directories):
        os.rmdir(directory)
        gone(directory)
    return Removed.WAY


def walk(directory: bytes) -> Iterator[tuple[bytes, bool]]:
    """All below a directory, parents first: path and whether each is a directory itself."""
    pending = [directory]
    while pending:
        current = pending.pop()
        with os.scandir(current or b".") as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in found:
            path = current + b"/" + name if current else name
            yield path, is_directory
            if is_directory:
                pending.append(path)
