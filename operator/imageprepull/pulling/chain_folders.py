"""Whether the directories of a committed chain are there: the runtime's records say nothing about its disk.

A chain whose directory is gone looks complete to containerd for ever: `Prepare` finds it, the CRI shows its image,
and only the start of a container fails (containerd issue 3369).
"""

from __future__ import annotations

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
        """Those of a committed chain, given bottom first, whose directory is gone.

        `labels` say whose the lease is that a view needs. Empty also where directories cannot be looked
        for, as those of another snapshotter than overlayfs.

        Raises:
            RuntimeFault: the runtime does not answer.
        """
        try:
            folders = await self.folders(containerd, snapshotter, chain_ids, labels)
        except ParentBroken:
            return [chain_ids[-1]]
        if not folders:
            return []
        there = await in_thread(lambda: [folder.is_dir() for folder in folders])
        return [chain_id for chain_id, found in zip(chain_ids, there, strict=True) if not found]

    async def folders(
        self, containerd: Containerd, snapshotter: str, chain_ids: Sequence[str], labels: Mapping[str, str]
    ) -> list[Path]:
        """Where the layers of a committed chain are, bottom first; empty where that cannot be known.

        Raises:
            ParentBroken: the directory of the last one is gone.
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
