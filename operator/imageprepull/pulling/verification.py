"""Checking a present image against the blobs that are kept of it, layer by layer, on demand.

For a disk or a power cut that somebody does not trust. What proves broken is removed, so that the next pull brings
it again; nothing is removed that a container stands on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from imageprepull.pulling.chain import Chain, ChainLostError
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.documents import ChainLayer, ImageDocuments, read_stored
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.leases import LeaseTerms, drop_lease, keep_content, short_lease
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.need import Need, usual_ratio
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.pulling.records import find_record
from imageprepull.pulling.request import PullRequest
from imageprepull.pulling.staging import CannotStageError, Staging
from imageprepull.pulling.threads import in_thread
from imageprepull.pulling.tree_difference import first_difference
from imageprepull.pulling.urgency import Urgency
from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import LeaseGone
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.workers import WorkerDied


@dataclass(slots=True)
class Verified:
    """`whole`, `unknown`: how many layers are as their blobs say, and could not be compared with any.

    `damaged`: blobs of the content store that had other bytes and were removed. `broken`: the chain that was removed
    with all that stood on it, and what was wrong with it; "" for none.
    """

    whole: int = 0
    unknown: int = 0
    damaged: list[str] = field(default_factory=list)
    broken: str = ""
    difference: str = ""

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{self.whole} layers are whole"]
        if self.unknown:
            parts.append(f"{self.unknown} have no blob to compare with")
        if self.damaged:
            parts.append(f"{len(self.damaged)} damaged blobs were removed")
        if self.broken:
            parts.append(f"{self.broken} was broken ({self.difference}) and is pulled again")
        return ", ".join(parts)


async def read_present(containerd: Containerd, request: PullRequest) -> ImageDocuments:
    """The documents of an image that the runtime has.

    Raises:
        PullError: NotPresent.
    """
    reference = request.reference
    record = await find_record(containerd, reference, request.digest or reference.digest)
    if record is None:
        raise PullError("NotPresent", f"the runtime has no record of {reference}")
    return await read_stored(
        containerd,
        record.target,
        request.platform,
        lambda missing: PullError("NotPresent", f"{missing} of {reference} is missing or damaged"),
    )


async def verify(
    machinery: Machinery,
    image: ImageDocuments,
    request: PullRequest,
    progress: ImageProgress,
    pull_lease: str,
) -> Verified:
    """Compare every layer of a present image with its blob, where the content store has it.

    `pull_lease` is that of the pull which brings again what was broken. Reads all of it and unpacks every
    layer once more, one after the other and with low priority.

    Raises:
        PullError: BrokenChain, when what is broken is in use and stays; NotPresent, when a layer is missing;
            RuntimeLostLayers, when something else takes them, or the lease, again and again.
        NoRoom: a layer cannot be unpacked beside the one that is there.
        RuntimeFault: the runtime does not answer.
    """
    lost = ""
    for _ in range(machinery.settings.lease_losses + 1):
        try:
            return await _verify_once(machinery, image, request, progress, pull_lease)
        except (ChainLostError, LeaseGone) as error:
            lost = str(error)
    raise PullError(
        "RuntimeLostLayers",
        f"lease or snapshots vanished from the runtime while {request.reference} was compared with its blobs; "
        f"does something else delete them? ({lost})",
    )


async def _verify_once(
    machinery: Machinery,
    image: ImageDocuments,
    request: PullRequest,
    progress: ImageProgress,
    pull_lease: str,
) -> Verified:
    containerd, settings = machinery.containerd, machinery.settings
    # It names no image: a next life of the agent discards it.
    labels = {key: value for key, value in request.lease_labels.items() if key != LEASE_IMAGE}
    seconds, cleanup = settings.lease_seconds, settings.cleanup_timeout
    async with short_lease(containerd, "verify", labels, seconds=seconds, cleanup=cleanup) as leased:
        chain = Chain(
            leased,
            lease=leased.lease,
            lease_labels=labels,
            snapshotter=request.snapshotter,
            folders=machinery.folders,
            writes=machinery.writes,
            boot_id=machinery.boot_id,
            settings=settings,
        )
        work = _Verification(
            machinery,
            chain,
            image,
            request=request,
            progress=progress,
            lease=leased.lease,
            pull_lease=pull_lease,
        )
        return await work.run()


class _Verification:
    def __init__(
        self,
        machinery: Machinery,
        chain: Chain,
        image: ImageDocuments,
        *,
        request: PullRequest,
        progress: ImageProgress,
        lease: str,
        pull_lease: str,
    ) -> None:
        self._machinery = machinery
        self._containerd = machinery.containerd.with_lease(lease)
        self._chain = chain
        self._layers = image.layers
        self._request = request
        self._progress = progress
        self._blobs = LayerBlobs(
            machinery=machinery,
            lease=lease,
            lease_labels=request.lease_labels,
            reference=request.reference,
            layers=image.layers,
            progress=progress,
            resumes=False,
        )
        self._target = image.target.digest
        self._pull_lease = pull_lease
        self._result = Verified()

    async def run(self) -> Verified:
        self._progress.enter("Verifying")
        self._progress.layers = [LayerProgress.of(layer, LayerState.EXISTS) for layer in self._layers]
        if await self._chain.count_existing(list(self._layers)) < len(self._layers):
            raise PullError("NotPresent", f"layers of {self._request.reference} are missing")
        await self._blobs_are_theirs()
        await self._blobs.look(self._containerd, sorted({layer.descriptor.digest for layer in self._layers}))
        folders = await self._machinery.folders.folders(
            self._containerd,
            self._request.snapshotter,
            [layer.chain_id for layer in self._layers],
            self._request.lease_labels,
        )
        staging = await self._staging() if folders else None
        try:
            for position, layer in enumerate(self._layers):
                if staging is None or not self._blobs.in_content(layer.descriptor.digest):
                    self._result.unknown += 1
                elif await self._is_broken(staging, position, layer, folders[position]):
                    break
        finally:
            if staging is not None:
                await finish_anyway(staging.close(), self._machinery.settings.cleanup_timeout)
            await finish_anyway(self._blobs.close(None), self._machinery.settings.cleanup_timeout)
        if self._result.broken:
            await self._remove()
        return self._result

    async def _blobs_are_theirs(self) -> None:
        """Blobs with other bytes than their digest says are removed: nobody can want them."""
        for digest in dict.fromkeys(layer.descriptor.digest for layer in self._layers):
            if await self._blobs.remove_damaged(digest):
                self._result.damaged.append(digest)

    async def _staging(self) -> Staging | None:
        machinery, request = self._machinery, self._request
        path = await machinery.extraction.choose(request.snapshotter, request.lease_labels)
        if path.path != "fast" or machinery.extraction.workers is None or path.roots is None:
            return None
        return Staging(
            self._chain,
            machinery.extraction.workers,
            machinery.slots,
            path.roots,
            urgency=Urgency(machinery.settings, urgent=False),
            cleanup_timeout=machinery.settings.cleanup_timeout,
        )

    async def _is_broken(self, staging: Staging, position: int, layer: ChainLayer, folder: Path) -> bool:
        shown = self._progress.layers[position]
        digest, size = layer.descriptor.digest, layer.descriptor.size
        # It is unpacked beside the one that is there, and removed before the next one.
        unpacked = round(size * usual_ratio(layer.descriptor.media_type))
        await self._machinery.rooms.check(Need(spool=size, snapshots=unpacked), self._request.min_free)
        try:
            staged = await staging.unpack(
                layer,
                position,
                await self._blobs.growing(digest),
                extracting=lambda: self._progress.advance(shown, LayerState.EXTRACTING),
            )
        except (Refused, CannotStageError, WorkerDied):
            self._result.unknown += 1
            return False
        finally:
            await self._blobs.release(digest)
            self._progress.advance(shown, LayerState.EXISTS)
        try:
            difference = await in_thread(lambda: first_difference(staged.folder, folder))
        except OSError:
            await self._chain.check_alive(staged.key)
            raise
        finally:
            await in_thread(lambda: shutil.rmtree(staged.folder, ignore_errors=True))
        # A collection that took the lease from us has been at our own tree, and nobody was told: that proves nothing.
        await self._chain.check_alive(staged.key)
        if not difference:
            self._result.whole += 1
            return False
        self._result.broken, self._result.difference = layer.chain_id, difference
        return True

    async def _remove(self) -> None:
        if self._request.keep_lease_on_failure:
            await self._keep_blobs()
        try:
            await self._chain.discard(self._result.broken, "BrokenChain", self._result.difference)
        except ChainLostError:
            return  # as it should be: it is gone.
        except PullError:
            await drop_lease(self._machinery.containerd, self._pull_lease)
            raise

    async def _keep_blobs(self) -> None:
        """For the pull that follows: without its records the image's blobs would be collected."""
        terms = LeaseTerms(
            id=self._pull_lease,
            image=self._target,
            labels=self._request.lease_labels,
            seconds=self._machinery.settings.lease_seconds,
        )
        await keep_content(self._machinery.containerd, terms, self._target)
