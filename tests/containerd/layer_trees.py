"""What committed layers hold, entry by entry, to be compared between two ways of making them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER

Tree = dict[str, dict[str, Any]]


async def layer_trees(containerd: Containerd, top: str) -> list[Tree]:
    """What the layers of a chain hold, bottom first."""
    return [tree(folder) for folder in await layer_folders(containerd, top)]


async def layer_folders(containerd: Containerd, top: str) -> list[Path]:
    """The directories of a chain of two layers or more, bottom first, found through the mounts of a child."""
    await containerd.leases.create("look", {}, 60)
    looking = containerd.with_lease("look")
    try:
        (mount,) = await looking.snapshots.prepare(SNAPSHOTTER, "look at layers", top, {})
        lower = next(option for option in mount.options if option.startswith("lowerdir="))
        folders = [Path(folder) for folder in lower.removeprefix("lowerdir=").split(":")]
        return folders[::-1]
    finally:
        await looking.snapshots.remove(SNAPSHOTTER, "look at layers")
        await containerd.leases.delete("look")


def tree(root: Path) -> Tree:
    """Every entry below and including `root`. Times only where the tar could say them: mtime 0 stays, others are
    "now"."""
    found: Tree = {}
    links: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        status = path.lstat()
        entry: dict[str, Any] = {
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "mtime": status.st_mtime_ns if status.st_mtime_ns < 10**17 else "now",
            "xattrs": {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        }
        if stat.S_ISREG(status.st_mode):
            entry["content"] = hashlib.sha256(path.read_bytes()).hexdigest()
            entry["linked to"] = links.setdefault(status.st_ino, name)
        elif stat.S_ISLNK(status.st_mode):
            entry["target"] = str(path.readlink())
        elif not stat.S_ISDIR(status.st_mode):
            entry["device"] = status.st_rdev
        found[name] = entry
    return found
