"""What somebody else who pulls the same image is at, and what of ours is better left to it meanwhile.

A pod's pull must not be slower for ours. Two things would make it so. A blob that both fetch halves the link for both,
and its pull waits for its own copy, whatever we have of it. And small layers cost the runtime mostly the transactions
around them and a machine the start of a worker: two at them take from each other more than they give. Of the rest ours are
there sooner than its own, and it skips them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.labels import ref_key
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.urgency import Urgency
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import RuntimeFault

log = structlog.get_logger(__name__)
NOTE = "left to a pull of the kubelet's, or of another client, that is under way"


@dataclass(frozen=True, slots=True)
class Lacking:
    """A blob whose layers are not all there: its compressed bytes, and whether all of them are here."""

    digest: str
    size: int
    whole: bool


class Signs:
    """When something was last seen to come of the other's pull: of a blob, and at all. Pure.

    Its lease and its ingests alone prove nothing: those of a runtime that was killed in a pull stay for a day.
    """

    def __init__(self, now: float, offsets: Mapping[str, int], layers: int) -> None:
        """`offsets`: bytes of each blob that is being ingested. `layers`: how many of the chain are there."""
        self._seen = now
        self._blobs: dict[str, float] = {}
        self._offsets = dict(offsets)
        self._layers = layers

    def note(self, now: float, offsets: Mapping[str, int], layers: int) -> None:
        """What is there now."""
        changed = [
            digest
            for digest in {*offsets, *self._offsets}
            if offsets.get(digest) != self._offsets.get(digest)
        ]
        self._blobs.update(dict.fromkeys(changed, now))
        if changed or layers != self._layers:
            self._seen = now
        self._offsets, self._layers = dict(offsets), layers

    def since(self, now: float) -> float:
        """Seconds since the last sign of any kind, or since we look."""
        return now - self._seen

    def moved(self, now: float, within: float) -> set[str]:
        """Blobs that the other fetched a byte of, began or ended within so many seconds."""
        return {digest for digest, seen in self._blobs.items() if now - seen < within}


def are_small(lacking: Collection[Lacking], small: int) -> bool:
    """Whether the blobs have no more than `small` bytes on the average."""
    return bool(lacking) and sum(blob.size for blob in lacking) <= small * len(lacking)


def left_to_other(lacking: Collection[Lacking], fetched: Collection[str]) -> frozenset[str]:
    """Of blobs that are worth our work those that the other fetches now, and that we have not got."""
    return frozenset(blob.digest for blob in lacking if not blob.whole and blob.digest in fetched)


class Others:
    """Whoever else pulls the image, as seen from one try of ours. `follow` looks, while it runs; at first none is left.

    Args:
        wanted: whether somebody else is at the image.
        layers: those of the image.
        lacking: the blobs of those of its layers that are not there.
        count: takes note of layers that are there now, and says how many are, from the bottom.
    """

    def __init__(
        self,
        containerd: Containerd,
        urgency: Urgency,
        progress: ImageProgress,
        settings: PullSettings,
        *,
        wanted: Callable[[], Awaitable[bool]],
        layers: Sequence[ChainLayer],
        lacking: Callable[[], list[Lacking]],
        count: Callable[[], Awaitable[int]],
    ) -> None:
        self._containerd = containerd
        self._urgency = urgency
        self._progress = progress
        self._settings = settings
        self._wanted = wanted
        self._refs = {ref_key(layer.descriptor): layer.descriptor.digest for layer in layers}
        self._lacking = lacking
        self._count = count
        self._left: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def left(self, digest: str) -> bool:
        """Whether a blob is left to the other now."""
        return digest in self._left

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what can become true by a look: of `left`, or of the layers that are there."""
        while not true():
            await self._changed.wait()

    async def follow(self) -> None:
        """Look at what the other does, from when it is first seen; until cancelled.

        Raises:
            ChainLostError: our lease is gone.
        """
        await self._urgency.wanted.wait()
        loop, settings = asyncio.get_running_loop(), self._settings
        small, signs = are_small(self._lacking(), settings.aside_small), None
        if small:
            log.info("small layers are left to another pull of the image", image=self._progress.reference)
            self._leave(frozenset(blob.digest for blob in self._lacking()))
        try:
            while True:
                now = loop.time()
                try:
                    wanted, offsets, there = await self._wanted(), await self._offsets(), await self._count()
                except RuntimeFault as fault:
                    # Ours meets it too, where it matters.
                    log.debug("cannot ask what another pull does", error=str(fault))
                    self._leave(frozenset())
                    await asyncio.sleep(settings.aside_poll)
                    continue
                signs = signs or Signs(now, offsets, there)
                signs.note(now, offsets, there)
                # Once: a kubelet that may not pull the image tries it again and again.
                small = small and wanted and signs.since(now) < settings.aside_stall
                lacking = self._lacking()
                if small:
                    self._leave(frozenset(blob.digest for blob in lacking))
                elif wanted:
                    self._leave(left_to_other(lacking, signs.moved(now, settings.aside_stall)))
                else:
                    self._leave(frozenset())
                await asyncio.sleep(settings.aside_poll if wanted else settings.wanted_poll)
        finally:
            self._leave(frozenset())

    async def _offsets(self) -> dict[str, int]:
        ingests = await self._containerd.content.list_ingests()
        return {self._refs[found.ref]: found.offset for found in ingests if found.ref in self._refs}

    def _leave(self, left: frozenset[str]) -> None:
        note = NOTE if left else ""
        if self._left != left or self._progress.note != note:
            self._left = left
            self._progress.note = note
            self._progress.on_change()
        self._changed.set()
        self._changed = asyncio.Event()
