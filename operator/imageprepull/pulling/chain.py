"""The chain of snapshots of one image: which exist, and making the next one, by containerd's Diff service or by us.

The rules are those of containerd's unpacker (`core/unpack/unpacker.go`) as an outside client can keep them, with one
more: AlreadyExists puts nothing under our lease on 1.6 and early 1.7, so AddResource and a look follow each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.chain_removal import remove_chains, what_stays_for
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.durability import WriteBack, believed, distrust, lost_writes
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNCOMPRESSED, UNSYNCED, extract_key
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.steps import Step, reached
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import (
    AlreadyExists,
    LeaseGone,
    NotFound,
    ParentBroken,
    RuntimeFault,
    TimedOut,
    Unavailable,
)
from imageprepull.runtime.labels import SNAPSHOT_REF
from imageprepull.runtime.mounts import Mount

_DAEMON_POLL = 0.2
_NO_DIRECTORY = "its directory is gone, or was emptied"


class ChainLostError(Exception):
    """Lease or snapshots vanished under the pull: take a new lease and ask the chain again."""


class NotAppliedError(Exception):
    """The runtime made of its blob no layer, or another one, as it does of a damaged blob, too.

    `failure` is the error that this is where the blob is whole.
    """

    def __init__(self, failure: Exception) -> None:
        """Nothing is known of the blob yet."""
        super().__init__(str(failure))
        self.failure = failure


def check_diff_id(layer: ChainLayer, found: str) -> None:
    """Refuse a layer that unpacks to something else than the config says.

    Raises:
        PullError: DiffIDMismatch.
    """
    if found != layer.diff_id:
        raise PullError(
            "DiffIDMismatch",
            f"the layer {layer.descriptor.digest} unpacks to {found}, but the image's config says "
            f"{layer.diff_id}; build and push the image again",
            permanent=True,
        )


class Chain:
    """Snapshots under one lease. `containerd` is the view bound to it."""

    def __init__(
        self,
        containerd: Containerd,
        *,
        lease: str,
        lease_labels: dict[str, str],
        snapshotter: str,
        folders: ChainFolders,
        writes: WriteBack,
        boot_id: str,
        settings: PullSettings,
    ) -> None:
        """Remember whose chain this is; nothing is asked yet. Lost writes count from now on."""
        self._containerd = containerd
        self._lease = lease
        self._active_labels = lease_labels
        self._snapshotter = snapshotter
        self._folders = folders
        self._writes = writes
        self._losses = writes.watch()
        self._boot_id = boot_id
        self._settings = settings

    async def count_existing(self, layers: list[ChainLayer]) -> int:
        """How many layers, from the bottom, are there and under our lease. The rest must be made.

        Raises:
            ChainLostError: the lease is gone, or a layer that was not to be believed was removed.
            PullError: BrokenChain or UnsyncedInUse, where such a layer is in use and stays.
        """
        number = await self._count(layers)
        chain = [layer.chain_id for layer in layers[:number]]
        broken = await self._folders.broken(self._containerd, self._snapshotter, chain, self._active_labels)
        if broken:
            await self.discard(broken[0], "BrokenChain", _NO_DIRECTORY)
        return number

    async def _count(self, layers: list[ChainLayer]) -> int:
        for number, layer in enumerate(layers):
            try:
                prepared = await self._prepare(layer)
            except ParentBroken:
                return number  # not the only one, perhaps: all of them are looked for.
            if prepared is not None:
                # Asking is preparing. The key is not kept over the download: an hour of an active snapshot for
                # a call of three milliseconds.
                await self.remove(prepared[0])
                return number
        return len(layers)

    async def apply(self, layer: ChainLayer, *, extracting: Callable[[], None]) -> None:
        """Make the snapshot of a layer whose blob is in the content store and whose parent is committed.

        Raises:
            NotAppliedError: with DiffIDMismatch, what the runtime said, or ChainLostError where it lacks the blob's file.
            ChainLostError: lease, parent or blob vanished.
        """
        async with self.building(layer) as mounts:
            if mounts is None:
                return
            extracting()
            await self._apply(layer, mounts)
            reached(Step.APPLIED, layer.chain_id)
        try:
            await self._containerd.content.update_labels(
                layer.descriptor.digest, {UNCOMPRESSED: layer.diff_id}
            )
        except (NotFound, LeaseGone) as error:
            raise ChainLostError(str(error)) from error

    async def _apply(self, layer: ChainLayer, mounts: list[Mount]) -> None:
        try:
            applied = await self._containerd.diff.apply(
                layer.descriptor, mounts, deadline=self._settings.apply_timeout
            )
            check_diff_id(layer, applied.digest)
        except NotFound as error:
            raise NotAppliedError(ChainLostError(str(error))) from error
        except (RuntimeFault, PullError) as error:
            if isinstance(error, RuntimeFault) and error.temporary:
                raise
            raise NotAppliedError(error) from error

    @asynccontextmanager
    async def building(self, layer: ChainLayer) -> AsyncIterator[list[Mount] | None]:
        """A snapshot on the layer's committed parent for the block to fill: committed if the block ends well.

        None: the chain is there, and our lease holds it; the block has nothing to do.

        Raises:
            ChainLostError: lease or parent vanished.
            PullError: BrokenChain, where the parent has no directory, and is in use and stays; DiskError, when the disk
                has lost writes since this chain was begun.
        """
        try:
            prepared = await self._prepare(layer)
        except ParentBroken:
            await self.discard(layer.parent, "BrokenChain", _NO_DIRECTORY)
        if prepared is None:
            yield None
            return
        key, mounts = prepared
        try:
            reached(Step.PREPARED, layer.chain_id)
            yield mounts
            self._check_written()
            await self._commit(layer, key)
            await self._distrust_if_lost(layer)
            reached(Step.COMMITTED, layer.chain_id)
        except AlreadyExists as error:
            await finish_anyway(self.remove(key), self._settings.cleanup_timeout)
            if not await self._adopt(layer.chain_id):
                raise ChainLostError(layer.chain_id) from error
        except (NotFound, LeaseGone) as error:
            await finish_anyway(self.remove(key), self._settings.cleanup_timeout)
            raise ChainLostError(str(error)) from error
        except BaseException:
            await finish_anyway(self.remove(key), self._settings.cleanup_timeout)
            raise

    async def holds(self, layer: ChainLayer) -> bool:
        """Whether the layer's chain is there; then our lease holds it. For layers that another pull was making.

        Raises:
            ChainLostError: the lease is gone.
        """
        # Looked up first: what AddResource is told of a missing snapshot stays in the lease.
        if await self._containerd.snapshots.stat(self._snapshotter, layer.chain_id) is None:
            return False
        return await self._adopt(layer.chain_id)

    async def prepare_apart(self) -> tuple[str, list[Mount]]:
        """An active snapshot without a parent, to unpack layers in before their parents are there; (key, mounts).

        It bears no `snapshot.ref`: it never becomes a layer itself.

        Raises:
            ChainLostError: the lease is gone.
        """
        key = extract_key(f"staging {self._lease}")
        try:
            mounts = await self._containerd.snapshots.prepare(
                self._snapshotter, key, "", dict(self._active_labels)
            )
        except (NotFound, LeaseGone) as error:
            raise ChainLostError(str(error)) from error
        except BaseException:
            await finish_anyway(self.remove(key), self._settings.cleanup_timeout)
            raise
        return key, mounts

    async def check_alive(self, key: str) -> None:
        """Make sure that nothing of an active snapshot was deleted so far.

        The runtime deletes a snapshot's record before it touches the files, and tells nobody who writes there.

        Raises:
            ChainLostError: it is gone.
        """
        if await self._containerd.snapshots.stat(self._snapshotter, key) is None:
            raise ChainLostError(f"the active snapshot {key} was deleted while it was filled")

    async def remove(self, key: str) -> None:
        """Remove an active snapshot, if it is still there."""
        try:
            await self._containerd.snapshots.remove(self._snapshotter, key)
        except NotFound:
            return

    def _check_written(self) -> None:
        if self._writes.losses != self._losses:
            raise lost_writes()

    async def _distrust_if_lost(self, layer: ChainLayer) -> None:
        """Whoever was told of a loss may have looked through the layers just before this one was there."""
        try:
            self._check_written()
        except PullError:
            marking = distrust(self._containerd, self._snapshotter, self._boot_id, [layer.chain_id])
            await finish_anyway(marking, self._settings.cleanup_timeout)
            raise

    async def _commit(self, layer: ChainLayer, key: str) -> None:
        labels = {SNAPSHOT_REF: layer.chain_id, UNSYNCED: self._boot_id}
        try:
            await self._containerd.snapshots.commit(self._snapshotter, layer.chain_id, key, labels)
        except (Unavailable, TimedOut):
            # The answer is lost, the layer perhaps not: after the daemon's death the name alone says which.
            if not await self._committed_anyway(layer):
                raise

    async def _committed_anyway(self, layer: ChainLayer) -> bool:
        try:
            async with asyncio.timeout(self._settings.daemon_patience):
                while True:
                    try:
                        return await self.holds(layer)
                    except Unavailable:
                        await asyncio.sleep(_DAEMON_POLL)
        except TimeoutError:
            return False

    async def _prepare(self, layer: ChainLayer) -> tuple[str, list[Mount]] | None:
        """An active snapshot for the layer, or None when its chain exists and our lease holds it."""
        labels = {**self._active_labels, SNAPSHOT_REF: layer.chain_id}
        for _ in range(self._settings.prepare_attempts):
            key = extract_key(layer.chain_id)
            try:
                mounts = await self._containerd.snapshots.prepare(
                    self._snapshotter, key, layer.parent, labels
                )
            except AlreadyExists:
                if await self._adopt(layer.chain_id):
                    return None
            except (NotFound, LeaseGone) as error:
                raise ChainLostError(str(error)) from error
            except BaseException:
                # Cancelled or cut off: the daemon may have prepared it all the same.
                await finish_anyway(self.remove(key), self._settings.cleanup_timeout)
                raise
            else:
                return key, mounts
        raise PullError(
            "SnapshotUnsettled",
            f"the runtime says of the snapshot {layer.chain_id} that it exists, and again that it does not; "
            "look into its log",
        )

    async def _adopt(self, chain_id: str) -> bool:
        """Put an existing snapshot under our lease, then look whether it is still there."""
        try:
            await self._containerd.leases.add_resource(
                self._lease, f"snapshots/{self._snapshotter}", chain_id
            )
        except (NotFound, LeaseGone) as error:
            raise ChainLostError(str(error)) from error
        found = await self._containerd.snapshots.stat(self._snapshotter, chain_id)
        if found is None:
            return False
        if not believed(found.labels.get(UNSYNCED), self._boot_id):
            await self.discard(
                chain_id,
                "UnsyncedInUse",
                "the machine restarted or its disk failed before it was written to disk",
            )
        return True

    async def discard(self, chain_id: str, reason: str, why: str) -> NoReturn:
        """Remove a layer that is not to be believed, and what stands on it, so that it is made anew.

        Raises:
            ChainLostError: done.
            PullError: with `reason`, when it is in use and stays.
        """
        removed = await remove_chains(
            self._containerd, self._snapshotter, [chain_id], why, self._active_labels
        )
        user = removed.in_use.get(chain_id)
        if user is not None:
            raise PullError(
                reason,
                f"the layer {chain_id} is not to be believed ({why}), and cannot be replaced while "
                f"{what_stays_for(user)}",
            )
        raise ChainLostError(f"the layer {chain_id} was removed: {why}")
