"""The pull's front door: one `Puller` per process, any number of images at once.

Its callers are the agent and `imageprepull pull`; everything that images share (downloads, locks, limits) is here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from imageprepull.pulling.blobs import Spool
from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.durability import WriteBack, read_boot_id, settle_losses
from imageprepull.pulling.errors import DISK_ERROR, PullError, as_pull_error
from imageprepull.pulling.extraction import Extraction, PathWish
from imageprepull.pulling.image import ImagePull
from imageprepull.pulling.leases import discard_image_lease, terms_of
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.placing import Placing
from imageprepull.pulling.pressure import follow
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.request import PullOutcome, PullRequest, Until
from imageprepull.pulling.rooms import Places, Rooms
from imageprepull.pulling.runtime_pull import pull_by_runtime, runtime_may
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.slots import Slots
from imageprepull.pulling.space import NO_THRESHOLDS, Thresholds
from imageprepull.pulling.syncing import Syncing
from imageprepull.pulling.verification import Verified, read_present, verify
from imageprepull.pulling.yielding import give_back
from imageprepull.registry.client import RegistryClient
from imageprepull.resources.reasons import DISK_FULL
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import RuntimeFault
from imageprepull.unpacking.workers import Workers

log = structlog.get_logger(__name__)
_MOST_WORKERS = 6
"""More would not fit into the memory that an agent may use, each with its buffers and an ordinary zstd window."""
_SPARE_WORKERS = 2


class Puller:
    """`async with Puller(...) as puller: await puller.pull(request, progress)`.

    Leaving the block waits for what still runs in the background; leaving it by an exception cancels that. Either
    way layers that are not on the disk are synced once more: a machine that is then switched off in order keeps them.

    Args:
        containerd: the connection, without a lease.
        registry: an entered client.
        spool_dir: where blobs are collected, on the file system of the runtime's data; created when needed.
        snapshotter_root: the snapshotter's folder as this process sees it, for syncfs.
        content_root: that of the content store, where blobs need not be sent if it is on the mount of `spool_dir`.
        parallel_downloads: connections at once over all images; may be changed at any time.
        workers: who unpacks on the fast path, the caller's to close; None leaves only the portable one.
        path: which path layers may take.
        parallel_unpacks: workers at work at once over all images; by default as many as there are cores for us.
        thresholds: where the kubelet of this node acts, which pulls keep away from; by default there is no kubelet.
        boot_id: the kernel's, unless given; `UNKNOWN_BOOT` where nobody can tell.
        settings: delays and bounds.
    """

    def __init__(
        self,
        containerd: Containerd,
        registry: RegistryClient,
        spool_dir: Path,
        *,
        snapshotter_root: Path,
        content_root: Path | None = None,
        parallel_downloads: int = 8,
        workers: Workers | None = None,
        path: PathWish = "auto",
        parallel_unpacks: int | None = None,
        thresholds: Thresholds = NO_THRESHOLDS,
        boot_id: str | None = None,
        settings: PullSettings | None = None,
    ) -> None:
        settings = settings or PullSettings()
        boot_id = boot_id or read_boot_id()
        self._downloads = Limiter(parallel_downloads)
        self._rooms = Rooms(
            Places(spool_dir, snapshotter_root, content_root), thresholds, settings.space_interval
        )
        self._machinery = Machinery(
            containerd=containerd,
            registry=registry,
            spool=Spool(registry, spool_dir, self._downloads, settings, boot_id),
            placing=Placing(content_root, spool_dir),
            extraction=Extraction(containerd, snapshotter_root, workers, path),
            folders=ChainFolders(snapshotter_root),
            slots=Slots(
                parallel_unpacks or min(_MOST_WORKERS, _cores()), spare=_SPARE_WORKERS, cores=_cores()
            ),
            rooms=self._rooms,
            applies=Limiter(settings.parallel_applies),
            polite_applies=Limiter(settings.parallel_applies),
            settings=settings,
            boot_id=boot_id,
            writes=WriteBack(snapshotter_root),
        )
        self._syncing = Syncing(containerd, self._machinery.writes, boot_id, settings)
        self._background: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Watch the disks, as long as the block lasts; it bounds the life of background work too."""
        machinery, pressure = self._machinery, self._machinery.settings.pressure
        most = max(machinery.slots.limit, machinery.applies.limit)

        def at_once(count: int) -> None:
            machinery.slots.polite = machinery.polite_applies.limit = count

        machinery.writes.watch()
        self._watching = [
            asyncio.create_task(self._syncing.run(), name="layers left unsynced"),
            asyncio.create_task(self._rooms.follow(), name="room on disks"),
            asyncio.create_task(follow(pressure, most, at_once), name="pressure on disks"),
        ]
        for watch in self._watching:
            watch.add_done_callback(_watch_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for background work, or end it when the block failed."""
        if error is not None:
            for task in self._background:
                task.cancel()
        try:
            await self.finish()
        finally:
            for watch in self._watching:
                watch.cancel()
            ended = await asyncio.gather(*self._watching, return_exceptions=True)
            await self._syncing.finish()
            self._machinery.writes.close()
            for failure in ended:
                if isinstance(failure, Exception):
                    raise failure

    @property
    def rooms(self) -> Rooms:
        """The disks that pulls write to."""
        return self._rooms

    @property
    def extraction(self) -> Extraction:
        """Which path layers take, and why."""
        return self._machinery.extraction

    @property
    def folders(self) -> ChainFolders:
        """Where chains are on the disk."""
        return self._machinery.folders

    @property
    def writes(self) -> WriteBack:
        """The file system that layers are written to."""
        return self._machinery.writes

    @property
    def lease_seconds(self) -> float:
        """How long the lease of a pull lasts."""
        return self._machinery.settings.lease_seconds

    @property
    def parallel_downloads(self) -> int:
        """How many connections there may be at once over all images."""
        return self._downloads.limit

    @parallel_downloads.setter
    def parallel_downloads(self, count: int) -> None:
        self._downloads.limit = count

    async def pull(
        self, request: PullRequest, progress: ImageProgress, *, until: Until = "ready"
    ) -> PullOutcome:
        """Bring one image onto the node. May run for several images at once.

        With `until="ready"` it returns when the image is visible and leaves the rest (blobs, syncing) to the background:
        `progress.phase` becomes Done when that is finished. With "done" it waits for that too.
        What only our registry client cannot fetch is left to the runtime, once; `progress.note` then says why.

        Raises:
            PullError: why not; `permanent` says whether trying again can help.
        """
        attempt = ImagePull(self._machinery, request, progress)
        try:
            outcome = await self._run(attempt, request, progress)
        except PullError as error:
            if not runtime_may(self._machinery, error):
                raise
            outcome = await pull_by_runtime(self._machinery, request, progress, error)
            self._syncing.synced(request.snapshotter, [layer.chain_id for layer in progress.layers])
            try:
                await self.abandon(dataclasses.replace(request, digest=outcome.digest))
            except RuntimeFault as fault:
                # It expires by itself, and the next start of an agent sweeps it.
                log.warning(
                    "cannot drop the lease of the failed attempt", image=progress.reference, error=str(fault)
                )
            return outcome
        if until == "done":
            try:
                done = await self._finish(attempt, request, progress)
            except Exception as error:
                raise as_pull_error(error) from error
            return dataclasses.replace(outcome, seconds_kept=progress.seconds["kept"], seconds_done=done)
        task = asyncio.create_task(
            self._settle(attempt, request, progress), name=f"settle {progress.reference}"
        )
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return outcome

    async def verify(self, request: PullRequest, progress: ImageProgress) -> Verified:
        """Compare a present image with the blobs that are kept of it. Removes what proves broken: pull it then.

        Raises:
            PullError: it is not there, or what is broken is in use and stays.
        """
        try:
            image = await read_present(self._machinery.containerd, request)
            lease = terms_of(request, image.target.digest, self.lease_seconds).id
            async with self._machinery.images.hold(lease):
                return await verify(self._machinery, image, request, progress, lease)
        except Exception as error:
            raise as_pull_error(error) from error

    async def finish(self) -> None:
        """Wait for everything that `pull` left to the background."""
        if self._background:
            await asyncio.wait(self._background)

    async def abandon(self, request: PullRequest) -> None:
        """Give an image up for good: its lease goes, and what nobody else comes for in the spool. Not while it is pulled.

        Raises:
            RuntimeFault: the runtime does not answer; call again.
        """
        digest = request.digest or request.reference.digest
        if digest is None or not request.keep_lease_on_failure:
            return  # such a pull has cleaned up after itself.
        lease = terms_of(request, digest, self.lease_seconds).id
        async with self._machinery.images.hold(lease):
            await discard_image_lease(self._machinery.containerd, lease)
            await self._machinery.spool.give_up(lease)

    async def give_back(self, owner: str, only: Collection[str] | None = None) -> int:
        """Give up what unfinished pulls of `owner` hold, at once: see `yielding.give_back`."""
        return await give_back(self._machinery, owner, only)

    async def _run(self, attempt: ImagePull, request: PullRequest, progress: ImageProgress) -> PullOutcome:
        try:
            return await attempt.run()
        except PullError as error:
            if error.reason in (DISK_FULL, DISK_ERROR):
                machinery = self._machinery
                settling = settle_losses(
                    machinery.containerd, request.snapshotter, machinery.writes, machinery.boot_id
                )
                await finish_anyway(settling, machinery.settings.cleanup_timeout)
            # Nobody comes for them if no attempt follows.
            self._syncing.again()
            raise
        finally:
            self._syncing.begun(request.snapshotter, [layer.chain_id for layer in progress.layers])

    async def _finish(self, attempt: ImagePull, request: PullRequest, progress: ImageProgress) -> float:
        seconds = await attempt.settle()
        self._syncing.synced(request.snapshotter, [layer.chain_id for layer in progress.layers])
        return seconds

    async def _settle(self, attempt: ImagePull, request: PullRequest, progress: ImageProgress) -> None:
        try:
            await self._finish(attempt, request, progress)
        except Exception as error:  # noqa: BLE001 - as_pull_error raises again what is no failure of the pull.
            failure = as_pull_error(error)
            # The image is there and usable. Its layers are tried again; its blobs are missing as where they are discarded.
            self._syncing.begun(request.snapshotter, [layer.chain_id for layer in progress.layers])
            self._syncing.again()
            log.warning(
                "an image is ready, but not all of it is kept or synced to disk",
                image=progress.reference,
                reason=failure.reason,
                error=failure.message,
            )


def _watch_ended(watch: asyncio.Task[None]) -> None:
    """A defect must not leave the disks unwatched in silence; it is raised when the block ends."""
    if not watch.cancelled() and (error := watch.exception()) is not None:
        log.error("a watch over the disks has failed", watch=watch.get_name(), error=repr(error))


def _cores() -> int:
    return len(os.sched_getaffinity(0))
