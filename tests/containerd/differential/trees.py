"""A directory tree as a value: every attribute that a container could see, and what differs between two of them."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

NOW = "now"
_CLOCK = 20_000_000
"""Nanoseconds by which a file's time may be older than the clock: the kernel stamps with that of its last tick."""


@dataclass(frozen=True)
class Node:
    """What is at one path. Times are nanoseconds, or `NOW` for what was not set from the tar."""

    kind: str
    mode: int
    uid: int
    gid: int
    atime: int | str
    mtime: int | str
    size: int = 0
    content: str = ""
    """The target of a link, the digest of a file."""
    device: tuple[int, int] = (0, 0)
    links: frozenset[bytes] = frozenset()
    """All paths of the same inode, where there are several."""
    link_count: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)


Tree = dict[bytes, Node]
"""By path; b"" is the root."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def scan(root: Path, since: float) -> Tree:
    """Read a tree. Times between `since` (seconds since 1970) and this moment are "now"."""
    seen: list[tuple[bytes, bytes, os.stat_result]] = list(_walk(os.fsencode(root)))
    inodes: dict[int, set[bytes]] = {}
    for path, _, found in seen:
        inodes.setdefault(found.st_ino, set()).add(path)
    recent = range(int(since * 1e9) - _CLOCK, time.time_ns() + 1)
    return {path: _node(full, found, inodes[found.st_ino], recent) for path, full, found in seen}


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    yield b"", root, os.lstat(root)
    pending = [(b"", root)]
    while pending:
        path, full = pending.pop()
        for name in sorted(os.listdir(full)):  # noqa: PTH208 - names need not be text.
            child, below = path + b"/" + name if path else name, full + b"/" + name
            found = os.lstat(below)
            yield child, below, found
            if stat.S_ISDIR(found.st_mode):
                pending.append((child, below))


def _node(full: bytes, found: os.stat_result, paths: set[bytes], recent: range) -> Node:
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    is_file, is_device = kind == "file", kind in ("char", "block")
    content = ""
    if is_file:
        content = _digest(full)
    elif kind == "symlink":
        content = repr(os.readlink(full))  # noqa: PTH115
    return Node(
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        atime=NOW if found.st_atime_ns in recent else found.st_atime_ns,
        mtime=NOW if found.st_mtime_ns in recent else found.st_mtime_ns,
        size=found.st_size if is_file else 0,
        content=content,
        device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if is_device else (0, 0),
        links=frozenset(paths) if len(paths) > 1 else frozenset(),
        # A directory's counts its children, which are compared themselves.
        link_count=0 if kind == "directory" else found.st_nlink,
        xattrs={
            name: os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        },
    )


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def differences(ours: Tree, theirs: Tree) -> list[str]:
    """One line for each difference, empty when there is none."""
    found = [f"{path!r}: only in ours ({ours[path].kind})" for path in sorted(ours.keys() - theirs.keys())]
    found += [
        f"{path!r}: only in containerd's ({theirs[path].kind})"
        for path in sorted(theirs.keys() - ours.keys())
    ]
    for path in sorted(ours.keys() & theirs.keys()):
        mine, wanted = ours[path], theirs[path]
        if mine == wanted:
            continue
        for one in fields(Node):
            here, there = getattr(mine, one.name), getattr(wanted, one.name)
            if here != there:
                show = oct if one.name == "mode" else repr
                found.append(f"{path!r}: {one.name} is {show(here)}, containerd's is {show(there)}")
    return found
