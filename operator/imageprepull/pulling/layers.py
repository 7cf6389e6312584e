"""All layers of one image: each a task that downloads and unpacks at once, committed in order as they are ready.

Two ways lead to a committed layer: staging.py's, and containerd's own (chain.py), which also gets what ours cannot
do. The choice is per layer; a refusal by a limit or of an attack is final on either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import structlog

from imageprepull.pulling.chain import Chain, NotAppliedError
from imageprepull.pulling.cleanup import finish_anyway, stopped
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.expectation import Expectation, spooled_bytes
from imageprepull.pulling.extraction import ExtractionPath, required
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.need import Need
from imageprepull.pulling.others import Lacking, Others
from imageprepull.pulling.plan import missing_blobs
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.staging import CannotStageError, Staged, Staging
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.pulling.urgency import Urgency
from imageprepull.resources.free_space import Amount
from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.workers import WorkerDied

log = structlog.get_logger(__name__)


class LayerWork:
    """One try under one lease. `containerd` is the view bound to that lease.

    `choose` finds the path, when a layer is missing. `keep_spooled`: blobs stay in the spool when their layers are
    committed, for whoever ingests them then; those that take no room there stay anyway. `wanted`: whether somebody else pulls the
    image. `min_free`: as in `PullRequest`.
    After a failure the layer at fault is shown as Failed and the others as they stand.
    """

    def __init__(
        self,
        machinery: Machinery,
        containerd: Containerd,
        chain: Chain,
        blobs: LayerBlobs,
        *,
        choose: Callable[[], Awaitable[ExtractionPath]],
        progress: ImageProgress,
        keep_spooled: bool,
        urgency: Urgency,
        wanted: Callable[[], Awaitable[bool]],
        min_free: Amount | None = None,
    ) -> None:
        """Nothing is asked or fetched yet."""
        self._machinery = machinery
        self._containerd = containerd
        self._chain = chain
        self._blobs = blobs
        self._layers: tuple[ChainLayer, ...] = blobs.layers
        self._progress = progress
        self._keep_spooled = keep_spooled
        self._urgency = urgency
        self._min_free = min_free
        self._started = 0.0
        self._done = [asyncio.Event() for _ in self._layers]
        self._found: set[int] = set()
        """Made by somebody else meanwhile."""
        self._placing: set[int] = set()
        """Being committed by us."""
        self._were_left: set[str] = set()
        self._others = Others(
            containerd,
            urgency,
            progress,
            machinery.settings,
            wanted=wanted,
            layers=self._layers,
            lacking=self._lacking,
            count=self._count,
        )
        self._choose = choose
        self._staging: Staging | None = None
        self._chosen = False
        self.need = Need()
        """What all missing layers take, as far as known; for who has to wait for that much room."""

    async def run(self) -> None:
        """Return when every layer is a committed snapshot.

        Raises:
            BaseExceptionGroup: with the first failure and what it cancelled.
            ChainLostError: lease or snapshots vanished.
            NoRoom: there is no room for the missing layers.
        """
        existing = await self._chain.count_existing(list(self._layers))
        reached(Step.ASKED, f"{existing} of {len(self._layers)}")
        for number, layer in enumerate(self._progress.layers):
            self._progress.advance(layer, LayerState.EXISTS if number < existing else LayerState.WAITING)
            if number < existing:
                self._done[number].set()
        missing = missing_blobs(self._layers, existing)
        if not missing:
            return
        await self._blobs.look(self._containerd, list(missing))
        machinery, layers = self._machinery, list(self._layers)
        expectation = Expectation(
            layers=layers,
            progress=self._progress,
            spooled=await in_thread(lambda: spooled_bytes(machinery.spool.folder, layers)),
            in_content=self._blobs.in_content,
            copied=self._copied,
        )
        try:
            await machinery.rooms.guard(expectation, self._min_free, lambda: self._make(missing))
        finally:
            self.need = expectation().whole

    def _copied(self) -> bool:
        """Whether blobs are sent to the content store, beside those of the spool. At first nobody knows the path."""
        return self._staging is None and self._chosen and not self._machinery.placing.possible

    async def _make(self, missing: Mapping[str, list[int]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._others.follow(), name="others")
                await self._all_blobs(missing)
                following.cancel()
        finally:
            if self._staging is not None:
                await finish_anyway(self._staging.close(), self._machinery.settings.cleanup_timeout)

    async def _all_blobs(self, missing: Mapping[str, list[int]]) -> None:
        async with asyncio.TaskGroup() as group:
            choosing = group.create_task(self._choose_staging(), name="extraction path")
            for digest, positions in missing.items():
                group.create_task(self._blob(digest, positions, choosing), name=f"blob {digest}")

    def _lacking(self) -> list[Lacking]:
        blobs = {}
        for layer, done in zip(self._layers, self._done, strict=True):
            digest = layer.descriptor.digest
            if not done.is_set():
                blobs[digest] = Lacking(digest, layer.descriptor.size, self._blobs.whole(digest))
        return list(blobs.values())

    async def _count(self) -> int:
        """How many layers are there, from the bottom; our lease holds those, too, that somebody else has made."""
        for number, layer in enumerate(self._layers):
            if self._done[number].is_set():
                continue
            if not await self._chain.holds(layer):
                return number
            if self._done[number].is_set():  # by us, meanwhile.
                continue
            if number in self._placing:
                return number
            self._progress.advance(self._progress.layers[number], LayerState.EXISTS)
            self._found.add(number)
            self._done[number].set()
        return len(self._layers)

    async def _choose_staging(self) -> None:
        path = required(await self._choose())
        self._chosen = True
        workers = self._machinery.extraction.workers
        if path.path != "fast" or workers is None or path.roots is None:
            return
        self._staging = Staging(
            self._chain,
            workers,
            self._machinery.slots,
            path.roots,
            urgency=self._urgency,
            cleanup_timeout=self._machinery.settings.cleanup_timeout,
        )

    async def _blob(self, digest: str, positions: list[int], choosing: asyncio.Task[None]) -> None:
        """Every layer that a blob is, by us, or by somebody else whom it is left to."""
        while not self._are_there(positions):
            await self._others.until(lambda: self._are_there(positions) or not self._others.left(digest))
            if self._are_there(positions) or await self._made(digest, positions, choosing):
                break
            if not self._are_there(positions):
                await self._leave(digest, positions)
        for number in self._found.intersection(positions):
            # Ours may have been at it in that very moment, and have said so.
            self._progress.advance(self._progress.layers[number], LayerState.EXISTS)
        if set(positions) <= self._found:
            # Whether its blob is kept is the other's business, too.
            await self._blobs.release(digest)
        else:
            await self._settle(digest)

    def _are_there(self, positions: list[int]) -> bool:
        return all(self._done[number].is_set() for number in positions)

    async def _made(self, digest: str, positions: list[int], choosing: asyncio.Task[None]) -> bool:
        """Whether ours was at the layers of a blob to the end; not when it is left, or somebody else was faster."""
        making = asyncio.create_task(self._layers_of(digest, positions, choosing), name=f"making {digest}")
        leaving = asyncio.create_task(self._until_left(digest, set(positions)), name=f"left {digest}")
        # No task group: one that is ending takes a cancellation of ours for its own, and goes on (before Python 3.13).
        try:
            await asyncio.wait([making, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stopped(making, leaving)
        if making.cancelled():
            return False
        making.result()
        return True

    async def _until_left(self, digest: str, numbers: set[int]) -> None:
        await self._others.until(lambda: numbers <= self._found or self._others.left(digest))

    async def _leave(self, digest: str, positions: list[int]) -> None:
        self._were_left.add(digest)
        await self._blobs.leave(digest)
        for number in positions:
            if not self._done[number].is_set():
                self._progress.layers[number].unpacked = None
                self._progress.advance(self._progress.layers[number], LayerState.WAITING)

    async def _layers_of(self, digest: str, positions: list[int], choosing: asyncio.Task[None]) -> None:
        """One download, and every layer that it is."""
        with self._shown_as_failed(positions):
            if digest in self._were_left:
                await self._blobs.look_again(self._containerd, digest)
            if not self._blobs.in_content(digest):
                # On either path; the trial that chooses it goes on meanwhile.
                await self._blobs.growing(digest)
            await asyncio.shield(choosing)
            if self._staging is None and not self._blobs.in_content(digest):
                await self._blobs.ingest(self._containerd, digest)
        async with asyncio.TaskGroup() as group:
            for number in positions:
                if not self._done[number].is_set():
                    group.create_task(self._layer(number), name=f"layer {self._layers[number].chain_id}")

    async def _settle(self, digest: str) -> None:
        await self._blobs.settle_doubt(digest)
        if not self._blobs.in_content(digest):
            needed = self._keep_spooled
        else:
            # What takes no room stays: should the lease be taken from us yet, the content store's goes with it.
            needed = not await self._blobs.copied(self._containerd, digest)
        if not needed:
            await self._blobs.release(digest)

    async def _layer(self, number: int) -> None:
        layer, shown = self._layers[number], self._progress.layers[number]
        # Another image that is making the same chain makes it for us too. A layer waits only for lower ones while it
        # holds this, so that two images never wait for each other.
        chains = self._machinery.chains
        contended = layer.chain_id in chains
        async with chains.hold(layer.chain_id):
            with self._shown_as_failed([number]):
                made = contended and await self._chain.holds(layer)
                if not made and not await self._fast(number):
                    await self._portable(number)
        # From the first byte unpacked to the last commit, waiting for bytes in between included.
        if self._started:
            self._progress.seconds["extract"] = time.monotonic() - self._started
        self._progress.advance(shown, LayerState.APPLIED)
        self._done[number].set()

    async def _fast(self, number: int) -> bool:
        """Whether the layer went the fast path; if not, and without an error, the other may be tried."""
        if self._staging is None or not self._machinery.extraction.workers_alive:
            return False
        layer = self._layers[number]
        self._unpacked(number, 0)
        try:
            staged = await self._staging.unpack(
                layer,
                number,
                await self._blobs.growing(layer.descriptor.digest),
                extracting=lambda: self._extracting(number),
                unpacked=lambda size: self._unpacked(number, size),
            )
            await self._put_in_place(self._staging, layer, number, staged)
        except (Refused, CannotStageError, WorkerDied) as error:
            self._judge(layer, error)
            self._progress.layers[number].unpacked = None
            return False
        return True

    async def _put_in_place(self, staging: Staging, layer: ChainLayer, number: int, staged: Staged) -> None:
        self._progress.advance(self._progress.layers[number], LayerState.EXTRACTED)
        await self._parent(number)
        with self._being_placed(number):
            await staging.commit(layer, staged)

    def _judge(self, layer: ChainLayer, error: Refused | CannotStageError | WorkerDied) -> None:
        """Say that containerd gets the layer, or why nobody does.

        Raises:
            PullError: the layer was refused for good, or the fast path is the only one allowed.
        """
        digest = layer.descriptor.digest
        refusal = error.refusal if isinstance(error, Refused) else None
        if refusal is not None and (refusal.final or self._machinery.extraction.wish == "fast"):
            raise PullError(
                refusal.reason, f"the layer {digest} is refused: {error}", permanent=True
            ) from error
        if self._machinery.extraction.wish == "fast":
            raise PullError("FastPathFailed", f"the layer {digest} was not unpacked: {error}") from error
        log.warning(
            "a layer is left to the runtime",
            layer=digest,
            reason=refusal.reason if refusal is not None else type(error).__name__,
            error=str(error),
        )

    async def _portable(self, number: int) -> None:
        layer = self._layers[number]
        while True:
            await self._blobs.ingest(self._containerd, layer.descriptor.digest)
            await self._parent(number)
            try:
                async with self._turn_to_apply(number):
                    with self._being_placed(number):
                        await self._chain.apply(layer, extracting=lambda: self._extracting(number))
            except NotAppliedError as error:
                # No more than two rounds: a blob that is damaged again is an error.
                if not await self._blobs.remove_damaged(layer.descriptor.digest):
                    raise error.failure from error
            else:
                return

    @asynccontextmanager
    async def _turn_to_apply(self, number: int) -> AsyncIterator[None]:
        async with AsyncExitStack() as turns:
            if self._urgency.manners().polite:
                await turns.enter_async_context(self._machinery.polite_applies.slot(number))
            await turns.enter_async_context(self._machinery.applies.slot(number))
            yield

    @contextmanager
    def _being_placed(self, number: int) -> Iterator[None]:
        """Until the block ends well the layer is not there, or is there by us."""
        self._placing.add(number)
        try:
            yield
            self._done[number].set()
        finally:
            self._placing.discard(number)

    async def _parent(self, number: int) -> None:
        if number:
            await self._done[number - 1].wait()

    def _unpacked(self, number: int, size: int) -> None:
        # No news for a reader of the progress: it is what the watch over the disks asks for.
        self._progress.layers[number].unpacked = size

    def _extracting(self, number: int) -> None:
        self._started = self._started or time.monotonic()
        self._progress.advance(self._progress.layers[number], LayerState.EXTRACTING)

    @contextmanager
    def _shown_as_failed(self, positions: list[int]) -> Iterator[None]:
        try:
            yield
        except Exception:
            for number in positions:
                self._progress.advance(self._progress.layers[number], LayerState.FAILED)
            raise
