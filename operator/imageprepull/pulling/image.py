"""One image from reference to visible: resolve, lease, layers, documents, records, in the order that is safe.

The order is that of runtime-tested recovery: whatever dies between two steps, the next attempt finds what is there
by the same questions (`Prepare`, `Info`), and no image record stands over missing snapshots.
"""

from __future__ import annotations

import asyncio
import time
from math import inf

import structlog

from imageprepull.pulling.chain import Chain, ChainLostError
from imageprepull.pulling.cleanup import finish_anyway, heeding, patiently
from imageprepull.pulling.documents import ImageDocuments
from imageprepull.pulling.durability import make_durable
from imageprepull.pulling.errors import PullError, as_pull_error, first_error
from imageprepull.pulling.keeping import KEPT_AT_ONCE, keep_later, keep_now
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.layers import LayerWork
from imageprepull.pulling.leases import (
    LeaseTerms,
    discard_image_lease,
    drop_lease,
    open_lease,
    terms_of,
    until_renewal,
)
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.naming import name_image
from imageprepull.pulling.need import Need
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.pulling.records import put_documents
from imageprepull.pulling.request import PullOutcome, PullRequest
from imageprepull.pulling.resolving import resolve
from imageprepull.pulling.rooms import largest
from imageprepull.pulling.space import OF_THE_DISK, OUT_OF_SPACE, NoRoom
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.urgency import Urgency, wanted_elsewhere
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import LeaseGone, NotFound

log = structlog.get_logger(__name__)


class ImagePull:
    """One attempt at one image. `run` once, then `settle` for what may follow in the background."""

    def __init__(self, machinery: Machinery, request: PullRequest, progress: ImageProgress) -> None:
        """Nothing is asked yet."""
        self._machinery = machinery
        self._request = request
        self._progress = progress
        self._started = time.monotonic()
        self._image: ImageDocuments | None = None
        self._unread: set[str] = set()
        self._blobs: LayerBlobs | None = None
        self._work: LayerWork | None = None

    async def run(self) -> PullOutcome:
        """Return when the image is visible.

        Raises:
            PullError: with nothing of ours left but finished blobs and snapshots, and the lease where the request
                keeps it.
        """
        try:
            image = await self._resolve()
            terms = terms_of(self._request, image.target.digest, self._machinery.settings.lease_seconds)
            # Two references to one image, or one asked for twice, share the lease: one after the other.
            async with self._machinery.images.hold(terms.id):
                try:
                    return await self._under_lease(image, terms)
                except BaseException as error:
                    await self._close_blobs(error)
                    if isinstance(error, Exception) and as_pull_error(error).reason in OF_THE_DISK:
                        await self._give_back(terms.id)
                    raise
        except Exception as error:
            raise self._judged(error) from error

    def _judged(self, error: Exception) -> PullError:
        failure = as_pull_error(error)
        if failure.reason not in OUT_OF_SPACE or isinstance(failure, NoRoom):
            return failure
        need = self._work.need if self._work is not None else Need()
        return NoRoom(failure.reason, failure.message, need, self._request.min_free)

    async def _give_back(self, lease: str) -> None:
        """Keep nothing for a next attempt, whoever asks for that.

        A full disk needs the room, and what a failing one holds is not to be used.
        """
        if self._request.keep_lease_on_failure:
            # The spool first: without any room the runtime cannot delete a record either.
            timeout = self._machinery.settings.cleanup_timeout
            await finish_anyway(self._machinery.spool.give_up(lease, entirely=True), timeout)
            await finish_anyway(self._discard(lease, sync=True), timeout)

    async def settle(self) -> float:
        """Finish what the image did not have to wait for; the seconds since the start, all in all.

        Who dies before this loses no image: its layers are synced or pulled again, and blobs that were not kept are
        missing in the content store as they are where the runtime discards them. Their spool files are swept.

        Raises:
            PullError, RuntimeFault: what could not be finished; the image can be used.
        """
        if self._image is None:
            raise RuntimeError("settle before run")
        self._progress.enter("KeepingBlobs")
        failure: Exception | None = None
        try:
            if self._blobs is not None:
                await self._room_to_keep(self._blobs)
                await keep_later(self._machinery, self._blobs, self._request.lease_labels)
        except Exception as error:  # noqa: BLE001 - raised below: layers are to be synced all the same.
            failure = error
        finally:
            await self._close_blobs(None)
        self._elapsed("kept")
        image = self._image
        await patiently(lambda: self._make_durable(image), self._machinery.settings.settle_patience)
        if failure is not None:
            raise failure
        seconds = self._elapsed("done")
        self._progress.enter("Done")
        return seconds

    async def _room_to_keep(self, blobs: LayerBlobs) -> None:
        """Blobs that are sent stand beside the spool's, as many as are sent at once.

        Raises:
            NoRoom: they don't fit; the image is whole without them.
        """
        if not self._machinery.placing.possible:
            sizes = [blobs.size(digest) for digest in blobs.spooled()]
            need = Need(content=largest(sizes, KEPT_AT_ONCE))
            await self._machinery.rooms.check(need, self._request.min_free)

    async def _resolve(self) -> ImageDocuments:
        self._progress.enter("Resolving")
        image, self._unread = await resolve(self._machinery, self._request)
        self._image = image
        self._progress.digest = image.target.digest
        self._progress.layers = [LayerProgress.of(layer) for layer in image.layers]
        self._elapsed("resolve")
        return image

    async def _under_lease(self, image: ImageDocuments, terms: LeaseTerms) -> PullOutcome:
        lease = terms.id
        containerd, timeout = self._machinery.containerd, self._machinery.settings.cleanup_timeout
        finished = False
        self._blobs = blobs = LayerBlobs(
            machinery=self._machinery,
            lease=lease,
            lease_labels=self._request.lease_labels,
            reference=self._request.reference,
            layers=image.layers,
            progress=self._progress,
            resumes=self._request.keep_lease_on_failure,
        )
        try:
            outcome, losses = None, 0
            while outcome is None:
                left = await open_lease(containerd, terms)
                reached(Step.LEASED, lease)
                try:
                    making = self._make_within(until_renewal(left, terms.seconds), image, blobs, lease)
                    outcome = await heeding(making)
                except* (ChainLostError, LeaseGone, NotFound) as group:
                    losses += 1
                    if losses > self._machinery.settings.lease_losses:
                        raise PullError(
                            "RuntimeLostLayers",
                            f"lease or snapshots vanished from the runtime {losses} times while "
                            f"{self._request.reference} was pulled; does something else delete them? "
                            f"({first_error(group)})",
                        ) from group
                    log.warning("lease or snapshots vanished, starting the chain again", lease=lease)
            finished = True
        finally:
            if finished:
                await finish_anyway(self._end(lease), timeout)
            elif not self._request.keep_lease_on_failure:
                await finish_anyway(self._discard(lease), timeout)
        return outcome

    async def _close_blobs(self, error: BaseException | None) -> None:
        blobs, self._blobs = self._blobs, None
        if blobs is not None:
            await finish_anyway(blobs.close(error), self._machinery.settings.cleanup_timeout)

    async def _end(self, lease: str) -> None:
        """Drop the lease, and what earlier attempts kept in the spool and this one found elsewhere."""
        containerd, settings = self._machinery.containerd, self._machinery.settings
        await patiently(lambda: drop_lease(containerd, lease), settings.cleanup_timeout)
        reached(Step.RELEASED, lease)
        if self._request.keep_lease_on_failure:
            await self._machinery.spool.give_up(lease)

    async def _discard(self, lease: str, *, sync: bool = False) -> None:
        containerd, settings = self._machinery.containerd, self._machinery.settings
        await patiently(lambda: discard_image_lease(containerd, lease, sync=sync), settings.daemon_patience)

    async def _put_documents(self, containerd: Containerd, image: ImageDocuments) -> None:
        await put_documents(
            containerd,
            self._machinery.placing,
            self._request.reference,
            image,
            snapshotter=self._request.snapshotter,
            keep_layers=self._request.keep_blobs != "never",
            unread=self._unread,
        )
        # Verified by the runtime as it wrote them, or mended.
        self._unread = set()
        reached(Step.DOCUMENTED, image.target.digest)

    async def _make_within(
        self, seconds: float, image: ImageDocuments, blobs: LayerBlobs, lease: str
    ) -> PullOutcome | None:
        """None after so many seconds: the lease would expire before the image is there, and must be opened anew.

        Only between two goes may it be replaced: what was put under it meanwhile would be lost. Layers that are there
        stay, and so do fetched bytes; those that were being unpacked, once in many hours, are unpacked again.
        """
        try:
            async with asyncio.timeout(seconds if seconds < inf else None) as limit:
                return await self._make(image, blobs, lease)
        except TimeoutError:
            if not limit.expired():
                raise
        log.info("the lease grows old, going on under a new one", lease=lease)
        return None

    async def _make(self, image: ImageDocuments, blobs: LayerBlobs, lease: str) -> PullOutcome:
        machinery, request, progress = self._machinery, self._request, self._progress
        containerd = machinery.containerd.with_lease(lease)
        chain = Chain(
            containerd,
            lease=lease,
            lease_labels=request.lease_labels,
            snapshotter=request.snapshotter,
            folders=machinery.folders,
            writes=machinery.writes,
            boot_id=machinery.boot_id,
            settings=machinery.settings,
        )
        progress.enter("Pulling")
        await self._put_documents(containerd, image)
        urgency = Urgency(machinery.settings, request.urgent)
        documents = {image.manifest_document.descriptor.digest, image.manifest.config.digest}
        self._work = LayerWork(
            machinery,
            containerd,
            chain,
            blobs,
            choose=lambda: machinery.extraction.choose(request.snapshotter, request.lease_labels),
            progress=progress,
            keep_spooled=request.keep_blobs != "never",
            urgency=urgency,
            wanted=lambda: wanted_elsewhere(machinery.containerd, documents),
            min_free=request.min_free,
        )
        async with urgency.watched(machinery.containerd, documents, machinery.slots.look_again):
            await self._work.run()
        if request.keep_blobs == "before":
            await keep_now(containerd, blobs)
        progress.enter("Finishing")
        # Again: whatever wrote them meanwhile may have left our labels out.
        await self._put_documents(containerd, image)
        if request.sync == "before":
            await self._make_durable(image)
        pinned = await name_image(containerd, machinery.containerd, request, image, machinery.settings)
        seconds = self._elapsed("ready")
        progress.enter("Ready")
        return PullOutcome(
            digest=image.target.digest,
            config_digest=image.manifest.config.digest,
            layers=tuple(progress.layers),
            seconds_ready=seconds,
            seconds_kept=None,
            seconds_done=None,
            bytes_downloaded=sum(progress.bytes_by_host.values()),
            bytes_by_host=dict(progress.bytes_by_host),
            pinned=pinned,
        )

    async def _make_durable(self, image: ImageDocuments) -> None:
        await make_durable(
            self._machinery.containerd,
            self._request.snapshotter,
            self._machinery.writes,
            self._machinery.boot_id,
            [layer.chain_id for layer in image.layers],
        )

    def _elapsed(self, phase: str) -> float:
        seconds = time.monotonic() - self._started
        self._progress.seconds[phase] = seconds
        return seconds
