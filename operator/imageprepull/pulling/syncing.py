"""Layers that pulls of this process have left unsynced: tried again until they are on the disk, and at the end.

The image they belong to is ready and used meanwhile. Only a power cut would tell the difference, and make the node pull
it all again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.durability import WriteBack, make_durable
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.space import OF_THE_DISK
from imageprepull.runtime.connection import Containerd

log = structlog.get_logger(__name__)


class Syncing:
    """What `begun` names and `synced` does not."""

    def __init__(
        self, containerd: Containerd, writes: WriteBack, boot_id: str, settings: PullSettings
    ) -> None:
        """Nothing is left yet."""
        self._containerd = containerd
        self._writes = writes
        self._boot_id = boot_id
        self._settings = settings
        self._left: dict[str, set[str]] = {}
        self._due = asyncio.Event()

    def begun(self, snapshotter: str, chain_ids: Iterable[str]) -> None:
        """A pull may have committed these and has not synced them; somebody is about to, or calls `again`."""
        self._left.setdefault(snapshotter, set()).update(chain_ids)

    def synced(self, snapshotter: str, chain_ids: Iterable[str]) -> None:
        """These are on the disk, and believed."""
        self._left.get(snapshotter, set()).difference_update(chain_ids)

    def again(self) -> None:
        """A sync failed: `run` tries what is left."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled: after each `again` try what is left, with growing pauses, until nothing is."""
        while True:
            await self._due.wait()
            self._due.clear()
            pause = self._settings.sync_retry
            while any(self._left.values()):
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._settings.sync_retry_cap)
                try:
                    await self._sync()
                except Exception as error:  # noqa: BLE001 - as_pull_error raises again what is no failure of the runtime or disk.
                    failure = as_pull_error(error)
                    log.debug("layers are not synced yet", reason=failure.reason, error=failure.message)
                else:
                    log.info("layers that were left unsynced are on the disk")

    async def finish(self) -> None:
        """One try more, for the time that a process has to end: nobody else knows of them until the next one starts."""
        if any(self._left.values()):
            await finish_anyway(self._sync(), self._settings.stop_patience)

    async def _sync(self) -> None:
        for snapshotter, left in list(self._left.items()):
            chain_ids = sorted(left)
            try:
                await make_durable(self._containerd, snapshotter, self._writes, self._boot_id, chain_ids)
            except PullError as error:
                if error.reason not in OF_THE_DISK:
                    raise
                # Nobody believes them any more; they are found missing and pulled again.
                log.warning("layers are lost", reason=error.reason, error=error.message)
            self.synced(snapshotter, chain_ids)
