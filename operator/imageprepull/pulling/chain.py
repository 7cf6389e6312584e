"""The chain of snapshots of one image: which exist, and applying the next one through containerd's Diff service.

The rules are those of containerd's unpacker (`core/unpack/unpacker.go`) as an outside client can keep them, with one
more: AlreadyExists puts nothing under our lease on 1.6 and early 1.7, so AddResource and a look follow each.
"""

from __future__ import annotations

from collections.abc import Callable

from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNCOMPRESSED, UNSYNCED, extract_key
from imageprepull.pulling.settings import PullSettings
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists, LeaseGone, NotFound
from imageprepull.runtime.labels import SNAPSHOT_REF
from imageprepull.runtime.mounts import Mount


class ChainLostError(Exception):
    """Lease or snapshots vanished under the pull: take a new lease and ask the chain again."""


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
        boot_id: str,
        settings: PullSettings,
    ) -> None:
        """Remember whose chain this is; nothing is asked yet."""
        self._containerd = containerd
        self._lease = lease
        self._active_labels = lease_labels
        self._snapshotter = snapshotter
        self._boot_id = boot_id
        self._settings = settings

    async def count_existing(self, layers: list[ChainLayer]) -> int:
        """How many layers, from the bottom, are there and under our lease. The rest must be made.

        Raises:
            ChainLostError: the lease is gone.
        """
        for number, layer in enumerate(layers):
            prepared = await self._prepare(layer)
            if prepared is not None:
                # Asking is preparing. The key is not kept over the download: an hour of an active snapshot for
                # a call of three milliseconds.
                await self._remove(prepared[0])
                return number
        return len(layers)

    async def apply(self, layer: ChainLayer, *, extracting: Callable[[], None]) -> None:
        """Make the snapshot of a layer whose blob is in the content store and whose parent is committed.

        Raises:
            PullError: DiffIDMismatch.
            ChainLostError: lease, parent or blob vanished.
        """
        prepared = await self._prepare(layer)
        if prepared is None:
            return
        key, mounts = prepared
        try:
            extracting()
            applied = await self._containerd.diff.apply(
                layer.descriptor, mounts, deadline=self._settings.apply_timeout
            )
            check_diff_id(layer, applied.digest)
            labels = {SNAPSHOT_REF: layer.chain_id, UNSYNCED: self._boot_id}
            await self._containerd.snapshots.commit(self._snapshotter, layer.chain_id, key, labels)
        except AlreadyExists as error:
            await finish_anyway(self._remove(key), self._settings.cleanup_timeout)
            if not await self._adopt(layer.chain_id):
                raise ChainLostError(layer.chain_id) from error
        except (NotFound, LeaseGone) as error:
            await finish_anyway(self._remove(key), self._settings.cleanup_timeout)
            raise ChainLostError(str(error)) from error
        except BaseException:
            await finish_anyway(self._remove(key), self._settings.cleanup_timeout)
            raise
        try:
            await self._containerd.content.update_labels(
                layer.descriptor.digest, {UNCOMPRESSED: layer.diff_id}
            )
        except (NotFound, LeaseGone) as error:
            raise ChainLostError(str(error)) from error

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
                await finish_anyway(self._remove(key), self._settings.cleanup_timeout)
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
        unsynced = found.labels.get(UNSYNCED, self._boot_id)
        if unsynced != self._boot_id:
            raise PullError(
                "UnsyncedLayer",
                f"the snapshot {chain_id} was committed before the machine restarted and may be incomplete; "
                "it is removed when the agent or another imageprepull pull starts, unless something uses it",
            )
        return True

    async def _remove(self, key: str) -> None:
        try:
            await self._containerd.snapshots.remove(self._snapshotter, key)
        except NotFound:
            return
