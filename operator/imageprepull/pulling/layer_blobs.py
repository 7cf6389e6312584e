"""The blobs of one image's missing layers: downloaded once each, held for as long as a step still needs them.

Above it layers.py and keeping.py, below it `blobs.Spool`. A blob stays in the spool until its layers are committed,
and where it is to be kept until the content store has it. Progress of downloads is recorded here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import structlog

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Wanted, held_content, hold_blob
from imageprepull.pulling.damaged import Removed, remove_damaged
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.growing import Growing
from imageprepull.pulling.keyed_lock import KeyedLock
from imageprepull.pulling.labels import UNCOMPRESSED
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.plan import missing_blobs
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import RuntimeFault

log = structlog.get_logger(__name__)


class _Left(Exception):
    """A blob's block ends without what it was entered for, so that its bytes stay."""


@dataclass(slots=True)
class _Held:
    growing: Growing
    stack: AsyncExitStack


@dataclass(slots=True, kw_only=True)
class LayerBlobs:
    """Lives as long as the attempt, also when its chain is asked for again, and until the blobs are kept.

    `lease` holds what reaches the content store, `lease_labels` say whose it is, and `resumes` whether a next attempt
    comes for a failed one's bytes.
    """

    machinery: Machinery
    lease: str
    lease_labels: Mapping[str, str]
    reference: Reference
    layers: tuple[ChainLayer, ...]
    progress: ImageProgress
    resumes: bool
    _positions: dict[str, list[int]] = field(init=False)
    _held: dict[str, _Held] = field(default_factory=dict)
    _in_content: set[str] = field(default_factory=set)
    _doubted: set[str] = field(default_factory=set)
    _removed: dict[str, Removed] = field(default_factory=dict)
    _opening: KeyedLock = field(default_factory=KeyedLock)
    _ingesting: KeyedLock = field(default_factory=KeyedLock)
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._positions = missing_blobs(self.layers, 0)

    async def look(self, containerd: Containerd, digests: Sequence[str]) -> None:
        """Find out which blobs the content store has; the lease of `containerd` holds those from now on.

        All before the first download, so that downloads start lowest layer first.
        """
        self._in_content.clear()
        async with asyncio.TaskGroup() as group:
            for digest in await containerd.content.having(digests):
                group.create_task(self._look(containerd, digest))

    def in_content(self, digest: str) -> bool:
        """Whether the content store has a blob, as far as known."""
        return digest in self._in_content

    def whole(self, digest: str) -> bool:
        """Whether all bytes of a blob are here or in the content store, as far as known."""
        return digest in self._in_content or self._shown(digest)[0].done == self.size(digest)

    async def growing(self, digest: str) -> Growing:
        """The blob as it comes, until `release`. One that the content store has comes from there.

        Raises:
            PullError: the download failed before there was a file.
        """
        async with self._opening.hold(digest):
            held = self._held.get(digest)
            if held is None:
                stack = AsyncExitStack()
                growing = await stack.enter_async_context(self.machinery.spool.growing(self._wanted(digest)))
                held = self._held[digest] = _Held(growing, stack)
        return held.growing

    async def ingest(
        self, containerd: Containerd, digest: str, lease: str = "", *, unpacked: bool = False
    ) -> None:
        """See to it that the content store has a blob, and the lease of `containerd` (`lease`) holds it.

        `unpacked`: its diff ID is proven, and is written on it.

        Raises:
            PullError: the download failed, or RuntimeStalled.
            RuntimeFault: the runtime does not take it.
        """
        async with self._ingesting.hold(digest):
            if not lease and digest in self._in_content:
                return
            removed = self._removed.get(digest)
            labels = dict(removed.labels) if removed is not None else {}
            if unpacked:
                labels[UNCOMPRESSED] = self.layers[self._positions[digest][0]].diff_id
            await hold_blob(
                containerd,
                self.machinery.spool,
                self.machinery.placing,
                self.machinery.blobs,
                self._wanted(digest, lease),
                labels=labels,
                complete=lambda: self._complete(digest),
                stall=self.machinery.settings.ingest_stall,
            )
            self._in_content.add(digest)

    async def remove_damaged(self, digest: str) -> bool:
        """Whether the content store's copy of a blob was damaged, and is removed: `ingest` brings it anew, with its labels.

        Raises:
            PullError: DamagedContent, when it is the second time; RuntimeStalled.
            RuntimeFault: the runtime does not answer, or its disk fails.
        """
        self._doubted.discard(digest)
        machinery = self.machinery
        # Not while another image brings it.
        async with machinery.blobs.hold(digest):
            removed = await remove_damaged(
                machinery.containerd, digest, self.lease_labels, stall=machinery.settings.source_stall
            )
        if removed is None:
            return False
        self._in_content.discard(digest)
        if digest in self._removed:
            raise PullError(
                "DamagedContent",
                f"the runtime's copy of the layer {machinery.placing.where(digest)} was fetched anew and is damaged "
                f"again: {removed.damage}; look at the disk, and for another namespace of the runtime that has this file "
                f"on record: `ctr -n NAMESPACE content rm {digest}`",
                permanent=True,
            )
        self._removed[digest] = removed
        return True

    async def settle_doubt(self, digest: str) -> None:
        """Remove the content store's copy of a blob that we had to fetch although it is there, if it is damaged.

        A pull that has the layer does not fail for it.
        """
        if digest not in self._doubted:
            return
        try:
            await self.remove_damaged(digest)
        except (PullError, RuntimeFault) as error:
            log.warning("a blob that may be damaged stays", blob=digest, error=str(error))

    def spooled(self) -> list[str]:
        """Digests that are held here and that the content store lacks, lowest layer first."""
        held = [digest for digest in self._held if digest not in self._in_content]
        return sorted(held, key=lambda digest: self._positions[digest][0])

    async def copied(self, containerd: Containerd, digest: str) -> bool:
        """Whether the content store has a copy of its own of a blob held here, which so takes room twice.

        Raises:
            RuntimeFault: the runtime does not answer.
        """
        held = self._held.get(digest)
        if held is None or held.growing.placed:
            return False
        # Not a second name: a copy, or nothing any more. The order matters: what was placed may go at any time.
        return await containerd.content.info(digest) is not None

    def size(self, digest: str) -> int:
        """Bytes of a blob."""
        return self._descriptor(digest).size

    async def release(self, digest: str) -> None:
        """Nobody needs the spool's copy of a blob any more."""
        held = self._held.pop(digest, None)
        if held is not None:
            await held.stack.aclose()

    async def leave(self, digest: str) -> None:
        """Fetch a blob no further for now; its bytes stay. `look_again` before it goes on."""
        held = self._held.pop(digest, None)
        if held is not None:
            await held.stack.__aexit__(_Left, _Left(), None)

    async def look_again(self, containerd: Containerd, digest: str) -> None:
        """As `look`, for one blob that somebody else may have brought."""
        if digest not in self._in_content:
            await self._look(containerd, digest)

    async def close(self, error: BaseException | None) -> None:
        """Release all. After an `error` the bytes stay where a next attempt is to find them."""
        for digest in list(self._held):
            held = self._held.pop(digest)
            kind = None if error is None else type(error)
            await held.stack.__aexit__(kind, error, None)
        if not self.resumes:
            await self.machinery.spool.give_up(self.lease)

    async def _look(self, containerd: Containerd, digest: str) -> None:
        descriptor = self._descriptor(digest)
        # Not while another image reads it to prove it damaged, or adds its own source to its labels.
        async with self.machinery.blobs.hold(digest):
            if not await held_content(containerd, self.lease, self.reference, descriptor):
                return
        self._in_content.add(digest)
        for layer in self._shown(digest):
            waits = layer.state in (LayerState.WAITING, LayerState.DOWNLOADING)
            self.progress.advance(layer, LayerState.DOWNLOADED if waits else None, descriptor.size)

    def _wanted(self, digest: str, lease: str = "") -> Wanted:
        descriptor = self._descriptor(digest)
        content = self.machinery.containerd.content

        def from_content(offset: int) -> AsyncIterator[bytes]:
            return content.stream(digest, offset=offset)

        return Wanted(
            reference=self.reference,
            descriptor=descriptor,
            lease=lease or self.lease,
            # The lowest layer of any image before the second of another: it is what a chain waits for.
            priority=self._positions[digest][0],
            # With a lease of their own blobs are kept when the image is ready: no attempt follows.
            owner="" if lease else self.lease,
            advanced=lambda held: self._advanced(digest, held),
            received=partial(self._received, digest),
            source=from_content if digest in self._in_content else None,
        )

    def _descriptor(self, digest: str) -> Descriptor:
        return self.layers[self._positions[digest][0]].descriptor

    def _shown(self, digest: str) -> list[LayerProgress]:
        return [self.progress.layers[number] for number in self._positions[digest]]

    def _advanced(self, digest: str, held: int) -> None:
        if digest in self._in_content:
            return
        if held == self._descriptor(digest).size:
            self._complete(digest)
            return
        for layer in self._shown(digest):
            if layer.state in (LayerState.WAITING, LayerState.DOWNLOADING, LayerState.DOWNLOADED):
                self.progress.advance(layer, LayerState.DOWNLOADING, held)
            elif layer.state is LayerState.EXTRACTING and layer.done != held:
                # It is unpacked while it comes; what a reader wants to know of it is how far that is.
                self.progress.advance(layer, None, held)

    def _complete(self, digest: str) -> None:
        size = self._descriptor(digest).size
        for layer in self._shown(digest):
            waits = layer.state in (LayerState.WAITING, LayerState.DOWNLOADING)
            self.progress.advance(layer, LayerState.DOWNLOADED if waits else None, size)
        self.progress.seconds["download"] = time.monotonic() - self._started

    def _received(self, digest: str, host: str, count: int) -> None:
        if digest in self._in_content:
            # The content store did not give it, or not the right bytes.
            self._doubted.add(digest)
        by_host = self.progress.bytes_by_host
        by_host[host] = by_host.get(host, 0) + count
