"""All layers of one image: missing blobs come concurrently, the chain is applied in order while others still come."""

from __future__ import annotations

import asyncio
import time

from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Wanted, held_content, hold_blob
from imageprepull.pulling.chain import Chain
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.plan import missing_blobs
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd


class LayerWork:
    """One try under one lease. `containerd` is the view bound to that lease.

    After a failure the layer at fault is shown as Failed and the others as they stand.
    """

    def __init__(
        self,
        machinery: Machinery,
        containerd: Containerd,
        chain: Chain,
        *,
        lease: str,
        reference: Reference,
        layers: tuple[ChainLayer, ...],
        progress: ImageProgress,
        keep_partial: bool,
    ) -> None:
        """Nothing is asked or fetched yet."""
        self._machinery = machinery
        self._containerd = containerd
        self._chain = chain
        self._lease = lease
        self._reference = reference
        self._layers = layers
        self._progress = progress
        self._keep_partial = keep_partial
        self._started = time.monotonic()
        self._first_apply = 0.0

    async def run(self) -> None:
        """Return when every layer is a committed snapshot.

        Raises:
            BaseExceptionGroup: with the first failure and what it cancelled.
            ChainLostError: lease or snapshots vanished.
        """
        existing = await self._chain.count_existing(list(self._layers))
        for number, layer in enumerate(self._progress.layers):
            self._progress.advance(layer, LayerState.EXISTS if number < existing else LayerState.WAITING)
        missing = missing_blobs(self._layers, existing)
        async with asyncio.TaskGroup() as group:
            # All looked up before the first is fetched, so that fetches are started lowest layer first.
            found = [group.create_task(self._found(positions)) for positions in missing.values()]
            await asyncio.gather(*found)
            blobs = {
                digest: group.create_task(self._fetch(positions), name=f"blob {digest}")
                for (digest, positions), there in zip(missing.items(), found, strict=True)
                if not there.result()
            }
            for number in range(existing, len(self._layers)):
                if (fetching := blobs.get(self._layers[number].descriptor.digest)) is not None:
                    await fetching
                await self._apply(number)

    async def _found(self, positions: list[int]) -> bool:
        """Whether the content store has a blob; then our lease holds it from now on."""
        descriptor = self._layers[positions[0]].descriptor
        if not await held_content(self._containerd, self._lease, self._reference, descriptor):
            return False
        for position in positions:
            self._progress.advance(self._progress.layers[position], LayerState.DOWNLOADED, descriptor.size)
        return True

    async def _fetch(self, positions: list[int]) -> None:
        """Bring one blob into the content store; `positions` are the layers that it is."""
        descriptor = self._layers[positions[0]].descriptor
        shown = [self._progress.layers[position] for position in positions]

        def advanced(held: int) -> None:
            for layer in shown:
                if layer.state in (LayerState.WAITING, LayerState.DOWNLOADING):
                    self._progress.advance(layer, LayerState.DOWNLOADING, held)

        def received(host: str, count: int) -> None:
            by_host = self._progress.bytes_by_host
            by_host[host] = by_host.get(host, 0) + count

        def complete() -> None:
            for layer in shown:
                self._progress.advance(layer, LayerState.DOWNLOADED, descriptor.size)
            self._progress.seconds["download"] = time.monotonic() - self._started

        wanted = Wanted(
            reference=self._reference,
            descriptor=descriptor,
            lease=self._lease,
            # The lowest layer of any image before the second of another: it is what a chain waits for.
            priority=positions[0],
            keep_partial=self._keep_partial,
            advanced=advanced,
            received=received,
        )
        try:
            await hold_blob(
                self._containerd,
                self._machinery.spool,
                self._machinery.blobs,
                wanted,
                complete=complete,
                stall=self._machinery.settings.ingest_stall,
            )
        except Exception:
            self._fail(shown)
            raise

    async def _apply(self, number: int) -> None:
        layer, shown = self._layers[number], self._progress.layers[number]
        # The chain first: whoever waits for a chain that another image applies must not hold an apply slot.
        async with self._machinery.chains.hold(layer.chain_id), self._machinery.applies.slot(number):
            self._first_apply = self._first_apply or time.monotonic()
            try:
                await self._chain.apply(
                    layer, extracting=lambda: self._progress.advance(shown, LayerState.EXTRACTING)
                )
            except Exception:
                self._fail([shown])
                raise
        # From the first apply to the last commit, waiting for blobs in between included.
        self._progress.seconds["extract"] = time.monotonic() - self._first_apply
        self._progress.advance(shown, LayerState.APPLIED)

    def _fail(self, shown: list[LayerProgress]) -> None:
        for layer in shown:
            self._progress.advance(layer, LayerState.FAILED)
