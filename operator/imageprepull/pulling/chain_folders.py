"""Whether the directories of a committed chain are there: the runtime's records say nothing about its disk.

A chain whose directory is gone looks complete to containerd for ever: `Prepare` finds it, the CRI shows its image,
and only the start of a container fails (containerd issue 3369).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from imageprepull.pulling.labels import extract_key
from imageprepull.pulling.layer_folders import Roots, UnknownMounts, view_folders
from imageprepull.pulling.leases import short_lease
from imageprepull.pulling.threads import in_thread
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound, ParentBroken

_MOST_KNOWN = 1024


class ChainFolders:
    """Remembers where chains are: the runtime tells it only by a view, which costs two writes of its metadata.

    Args:
        root: the snapshotter's folder, under the same path for the runtime and this process.
    """

    def __init__(self, root: Path) -> None:
        self._roots = Roots(PurePosixPath(root), root)
        self._known: dict[tuple[str, str, int], list[Path]] = {}

    async def broken(
        self, containerd: Containerd, snapshotter: str, chain_ids: Sequence[str], labels: Mapping[str, str]
    ) -> list[str]:
        """Those of a committed chain, given bottom first, whose directory is gone, or has lost all that it held.

        `labels` say whose the lease is that a view needs. Empty also where directories cannot be looked
        for, as those of another snapshotter than overlayfs.

        Raises:
            RuntimeFault: the runtime does not answer.
        """
        known, gone = list(chain_ids), list[str]()
        folders: list[Path] = []
        while known:
            try:
                folders = await self.folders(containerd, snapshotter, known, labels)
                break
            except ParentBroken:
                # A view looks for the directory of the top alone, and there is none without it.
                gone.append(known.pop())
        filled = await in_thread(lambda: _filled(self._roots.ours, folders))
        found = dict(zip(known, filled, strict=False))
        lost = [
            chain_id
            for chain_id, held in found.items()
            if held is None or (not held and await self._held_files(containerd, snapshotter, chain_id))
        ]
        return lost + gone[::-1]

    async def _held_files(self, containerd: Containerd, snapshotter: str, chain_id: str) -> bool:
        """Whether a layer had files when it was committed: the runtime counted its inodes then, with the root's."""
        try:
            return (await containerd.snapshots.usage(snapshotter, chain_id)).inodes > 1
        except NotFound:
            return False

    async def folders(
        self, containerd: Containerd, snapshotter: str, chain_ids: Sequence[str], labels: Mapping[str, str]
    ) -> list[Path]:
        """Where the layers of a committed chain are, bottom first; empty where that cannot be known.

        Raises:
            ParentBroken: there is no directory of the topmost.
            RuntimeFault: the runtime does not answer.
        """
        if not chain_ids:
            return []
        found = await self._folders(containerd, snapshotter, chain_ids[-1], labels)
        return found[::-1] if len(found) == len(chain_ids) else []

    async def _folders(
        self, containerd: Containerd, snapshotter: str, top: str, labels: Mapping[str, str]
    ) -> list[Path]:
        """Top first. A snapshot cannot be replaced below its child, so that the top's age tells for all."""
        found = await containerd.snapshots.stat(snapshotter, top)
        if found is None:
            return []
        name = (snapshotter, top, found.created)
        known = self._known.get(name)
        if known is None:
            known = await self._look(containerd, snapshotter, top, labels)
            if known is None:
                return []
            if len(self._known) >= _MOST_KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[name] = known
        return known

    async def _look(
        self, containerd: Containerd, snapshotter: str, top: str, labels: Mapping[str, str]
    ) -> list[Path] | None:
        """None: it vanished meanwhile.

        A collection that takes a child forgets to tell its parent, which can then never be removed: hence the lease.
        """
        key = extract_key(f"view {top}")
        try:
            async with short_lease(containerd, "view", labels) as leased:
                mounts = await leased.snapshots.view(snapshotter, key, top, labels)
            return view_folders(mounts, self._roots)
        except NotFound:
            return None
        except UnknownMounts:
            return []


def _filled(root: Path, folders: Sequence[Path]) -> list[bool | None]:
    """Whether there is anything in each; None where there is no directory.

    What cannot be seen from here, as where only the runtime's socket was mounted, is no proof of anything.
    """
    return [_is_filled(folder) for folder in folders] if root.is_dir() else []


def _is_filled(folder: Path) -> bool | None:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return True
