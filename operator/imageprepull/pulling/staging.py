"""The fast path of one layer: unpacked by a worker while it downloads, apart from its chain, then put in its place.

Between layers.py, which says when, and chain.py, which makes the snapshots. Order and rules are those that were
tried on the daemons: nothing is visible to anyone before both digests match, and nothing is committed that the
runtime may have deleted a part of.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from imageprepull.oci.descriptor import OCI_FOREIGN_LAYER, OCI_LAYER, Descriptor
from imageprepull.pulling.chain import Chain, check_diff_id
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import DISK_ERRNOS
from imageprepull.pulling.exchange import exchange
from imageprepull.pulling.growing import Growing, SpoolRestarted
from imageprepull.pulling.layer_folders import Roots, UnknownMounts, layer_folders
from imageprepull.pulling.plan import Memory, Work
from imageprepull.pulling.slots import Slots
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.pulling.urgency import Urgency
from imageprepull.unpacking.frames import WIDER_WINDOW, first_window
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import (
    MORE_DIRECTORIES,
    MOST_REMEMBERED,
    MOST_WINDOW,
    Extracted,
    ExtractJob,
    ImplicitDirectory,
    InheritJob,
    Refused,
)
from imageprepull.unpacking.workers import Workers

log = structlog.get_logger(__name__)
_HEAD = 64 * 1024
"""Bytes of a blob in which its first frames are looked for."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _NeedsMore(Exception):
    """The layer takes more memory than its worker was given: a later zstd frame, or its directories."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.memory = memory


class CannotStageError(Exception):
    """The layer's folders are not to be handled from here: the portable path can do it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A layer unpacked and verified; `folder` is its tree, in the active snapshot `key`."""

    key: str
    folder: Path
    implicit: tuple[ImplicitDirectory, ...]


@dataclass(frozen=True, slots=True)
class _Apart:
    """The staging snapshot: its key, and its folder as this process sees it."""

    key: str
    folder: Path


def extract_job(
    descriptor: Descriptor,
    position: int,
    memory: Memory,
    *,
    dirty_bytes: int = 0,
    threads: int = 2,
) -> ExtractJob:
    """What a worker is asked. Of layer types only OCI's `…tar` is never looked at for a compression."""
    return ExtractJob(
        size=descriptor.size,
        detect=descriptor.media_type not in (OCI_LAYER, OCI_FOREIGN_LAYER),
        bottom=position == 0,
        dirty_bytes=dirty_bytes,
        threads=threads,
        window=memory.window,
        remembered=memory.remembered,
    )


class Staging:
    """The fast path for the layers of one image, under its lease. `close` when all is over.

    `urgency` is asked for each worker anew.
    """

    def __init__(
        self,
        chain: Chain,
        workers: Workers,
        slots: Slots,
        roots: Roots,
        *,
        urgency: Urgency,
        cleanup_timeout: float,
    ) -> None:
        self._chain = chain
        self._workers = workers
        self._slots = slots
        self._roots = roots
        self._urgency = urgency
        self._cleanup_timeout = cleanup_timeout
        self._apart: _Apart | None = None
        self._opening = asyncio.Lock()
        self._rooms = itertools.count()

    async def unpack(
        self,
        layer: ChainLayer,
        position: int,
        growing: Growing,
        *,
        extracting: Callable[[], None],
        unpacked: Callable[[int], None] = lambda _: None,
    ) -> Staged:
        """Unpack a layer as its bytes come; returns when tree and blob are verified and the worker was reaped.

        `unpacked` is told the bytes of the tar so far, and in the end all of them.

        Raises:
            PullError: the download failed, or DiffIDMismatch.
            Refused: the layer, whose bytes are verified, cannot or may not be unpacked here.
            CannotStageError, WorkerDied: not the layer's fault; the portable path may do.
            ChainLostError: lease or staging snapshot vanished.
            OSError: the disk.
        """
        memory = Memory()
        while True:
            try:
                return await self._attempt(layer, position, growing, extracting, unpacked, memory=memory)
            except _NeedsMore as needed:
                log.info("unpacking a layer again, with more memory", layer=layer.chain_id)
                memory = needed.memory
            except SpoolRestarted:
                log.info("unpacking a layer again, its bytes were not the blob's", layer=layer.chain_id)
                await growing.again()

    async def commit(self, layer: ChainLayer, staged: Staged) -> None:
        """Make the staged tree the layer's snapshot. Its parent must be committed.

        Raises:
            Refused: only unpacking onto the parent can get it right, or containerd would refuse it.
            CannotStageError, WorkerDied, ChainLostError: as `unpack`.
        """
        async with self._chain.building(layer) as mounts:
            if mounts is None:
                return  # somebody else was faster
            try:
                folders = layer_folders(mounts, self._roots)
                if staged.implicit and folders.below:
                    await self._inherit(staged, folders.lowers())
                    reached(Step.INHERITED, layer.chain_id)
                await in_thread(lambda: exchange(staged.folder, folders.upper))
                reached(Step.EXCHANGED, layer.chain_id)
            except (UnknownMounts, OSError) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                    raise
                await self._chain.check_alive(staged.key)
                raise CannotStageError(str(error)) from error
            # The last moment to learn that a collection has been at the tree: the worker was told of no error.
            await self._chain.check_alive(staged.key)
            reached(Step.VOUCHED, layer.chain_id)

    async def close(self) -> None:
        """Remove the staging snapshot, with whatever never came into its place."""
        async with self._opening:
            apart, self._apart = self._apart, None
            if apart is not None:
                await self._chain.remove(apart.key)
                reached(Step.UNSTAGED, apart.key)

    async def _attempt(
        self,
        layer: ChainLayer,
        position: int,
        growing: Growing,
        extracting: Callable[[], None],
        unpacked: Callable[[int], None],
        *,
        memory: Memory,
    ) -> Staged:
        """As `unpack`. `memory`: what the layer is known to ask for, beside what its first frames say."""
        # Both at once: a restart changes both.
        frontier, blob = growing.frontier, growing.fd
        # No turn and no worker before there is anything to unpack.
        await frontier.beyond(0)
        memory = replace(memory, window=max(memory.window, await _first_window(blob, frontier.held)))
        work = Work(position, layer.descriptor.size, memory)
        async with self._slots.turn(work, polite=lambda: self._urgency.manners().polite) as turn:
            extracting()
            key, folder = await self._room(position)
            try:
                job = extract_job(
                    layer.descriptor,
                    position,
                    memory,
                    dirty_bytes=self._urgency.manners().dirty_bytes,
                    threads=1 if self._slots.crowded else 2,
                )
                result = await self._extract(job, folder, blob, turn.follow(frontier), unpacked)
            except OSError:
                if growing.frontier is not frontier:
                    raise SpoolRestarted from None
                raise
        reason = result.refusal.reason if isinstance(result, Refused) else ""
        if reason == WIDER_WINDOW and memory.window < MOST_WINDOW:
            raise _NeedsMore(replace(memory, window=MOST_WINDOW))
        if reason == MORE_DIRECTORIES and memory.remembered < MOST_REMEMBERED:
            raise _NeedsMore(replace(memory, remembered=MOST_REMEMBERED))
        # Not in its turn: a download may go on for long after a refusal, which proves nothing before its end.
        extracted = await self._verified(layer, key, growing, frontier, result)
        unpacked(extracted.unpacked_bytes)
        reached(Step.UNPACKED, layer.chain_id)
        return Staged(key, folder, extracted.implicit)

    async def _room(self, position: int) -> tuple[str, Path]:
        """A new folder for one layer, in the one staging snapshot that all layers of the image share.

        One, since each active snapshot costs the runtime four writes to disk, of which an image of many small layers
        would mostly consist.
        """
        async with self._opening:
            if self._apart is None:
                self._apart = await self._open()
            apart = self._apart
        room = apart.folder / f"{position}-{next(self._rooms)}"
        try:
            await in_thread(room.mkdir)
        except OSError as error:
            if error.errno in DISK_ERRNOS:
                raise
            await self._chain.check_alive(apart.key)
            raise CannotStageError(f"{room} cannot be made: {error.strerror}") from error
        return apart.key, room

    async def _open(self) -> _Apart:
        key, mounts = await self._chain.prepare_apart()
        reached(Step.STAGED, key)
        try:
            return _Apart(key, layer_folders(mounts, self._roots).upper)
        except UnknownMounts as error:
            await finish_anyway(self._chain.remove(key), self._cleanup_timeout)
            raise CannotStageError(str(error)) from error

    async def _verified(
        self,
        layer: ChainLayer,
        key: str,
        growing: Growing,
        frontier: Frontier,
        result: Extracted | Refused,
    ) -> Extracted:
        await growing.verified()
        if growing.frontier is not frontier:
            raise SpoolRestarted
        if isinstance(result, Refused):
            # What fails in a folder that a collection takes away looks like an odd layer.
            await self._chain.check_alive(key)
            raise result
        check_diff_id(layer, result.diff_id)
        return result

    async def _extract(
        self, job: ExtractJob, folder: Path, blob: int, frontier: Frontier, unpacked: Callable[[int], None]
    ) -> Extracted | Refused:
        with _opened([folder]) as (root,):
            try:
                return await self._workers.extract(
                    job,
                    root=root,
                    blob=blob,
                    frontier=frontier,
                    progress=unpacked,
                    nice=self._urgency.manners().nice,
                    hurry=self._urgency.wanted,
                )
            except Refused as refused:
                return refused

    async def _inherit(self, staged: Staged, lowers: Sequence[Path]) -> None:
        job = InheritJob(implicit=staged.implicit, lowers=len(lowers))
        with _opened([staged.folder, *lowers]) as (root, *below):
            await self._workers.inherit(job, root=root, lowers=below)


async def _first_window(blob: int, held: int) -> int:
    """Bytes of zstd window that the first frames ask for, as far as they are held; no more than is ever granted."""
    head = await in_thread(lambda: os.pread(blob, min(held, _HEAD), 0))
    return min(first_window(head), MOST_WINDOW)


@contextmanager
def _opened(folders: Sequence[Path]) -> Iterator[list[int]]:
    """Descriptors of folders, for the time of the block.

    Raises:
        CannotStageError: one cannot be opened from here.
    """
    with ExitStack() as stack:
        descriptors = []
        for folder in folders:
            try:
                descriptors.append(os.open(folder, _FOLDER))
            except OSError as error:
                raise CannotStageError(f"{folder} cannot be opened: {error.strerror}") from error
            stack.callback(os.close, descriptors[-1])
        yield descriptors
