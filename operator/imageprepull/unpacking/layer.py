"""One compressed layer into a directory, while it is still being downloaded: the worker's whole job.

Two threads may share the work of one layer, and two cores: one inflates and hashes (both outside the interpreter's
lock), the caller's parses and writes. Where other layers want the cores, handing chunks over only costs time: then
the caller's does all. Below it `inflate`, `archive`, `tree`; above it the worker process.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imageprepull.unpacking.archive import Archive
from imageprepull.unpacking.faults import as_fault
from imageprepull.unpacking.handoff import Handoff
from imageprepull.unpacking.inflate import open_inflater
from imageprepull.unpacking.jobs import Extracted, ExtractJob, Limits, Refused
from imageprepull.unpacking.pace import Pace
from imageprepull.unpacking.stream import Stream
from imageprepull.unpacking.tree import Tree

READ = 256 * 1024
CHUNKS_AHEAD = 4
_RATIO_FROM = 64 << 20
_SWITCH_INTERVAL = 0.0002


def extract_layer(  # noqa: PLR0917 - what a worker has, and all that it has.
    job: ExtractJob,
    blob: int,
    root: int,
    frontier: Callable[[int], int],
    progress: Callable[[int], None],
    hurried: Callable[[], bool],
) -> Extracted:
    """Unpack a blob into the empty directory `root`; call it in a process of its own.

    Changes the working directory, the umask and settings of the interpreter.

    Args:
        job: what is asked.
        blob: the compressed file, growing; read by offset.
        root: the directory.
        frontier: blocks until more than that many bytes are there, or all; returns how many.
        progress: told the bytes of the tar so far, perhaps by another thread.
        hurried: whether somebody waits for the layer by now, so that it holds back no more.

    Raises:
        Refused: the layer is not one that may or can be unpacked here.
        OSError: the node's disk or memory.
    """
    os.fchdir(root)
    os.umask(0)
    gc.disable()  # nothing here makes circles, and this process ends with the layer.
    tar = _Tar(job, blob, frontier, progress)
    pace = Pace(root, job.dirty_bytes, hurried) if job.dirty_bytes else None
    with _chunks(tar, job.threads) as chunk:
        tree = _unpack(Archive(Stream(chunk, None if pace is None else pace.wrote)), job)
    return Extracted(
        diff_id=f"sha256:{tar.digest.hexdigest()}",
        unpacked_bytes=tar.unpacked,
        entries=tree.entries,
        implicit=tree.implicit.freeze(),
    )


class _Tar:
    """The uncompressed stream: counted, bounded and hashed."""

    def __init__(
        self, job: ExtractJob, blob: int, frontier: Callable[[int], int], progress: Callable[[int], None]
    ) -> None:
        self.digest = hashlib.sha256()
        self.unpacked = 0
        self._job = job
        self._blob = blob
        self._frontier = frontier
        self._progress = progress
        self._offset = 0
        self._there = 0
        self._inflated: Callable[[], bytes] | None = None

    def chunk(self) -> bytes:
        """The next bytes of the tar, b"" at its end."""
        if self._inflated is None:
            job = self._job
            self._inflated = open_inflater(
                self._compressed, detect=job.detect, limits=job.limits, window=job.window
            )
        found = self._inflated()
        self.digest.update(found)
        self.unpacked += len(found)
        _within(self.unpacked, self._offset, self._job.limits)
        self._progress(self.unpacked)
        return found

    def _compressed(self) -> bytes:
        if self._offset == self._job.size:
            return b""
        if self._offset >= self._there:
            self._there = self._frontier(self._offset)
        data = os.pread(self._blob, min(READ, self._there - self._offset), self._offset)
        if not data:
            raise OSError(errno.EIO, "the spool file is shorter than its frontier")
        self._offset += len(data)
        return data


@contextmanager
def _chunks(tar: _Tar, threads: int) -> Iterator[Callable[[], bytes]]:
    """The tar, chunk by chunk, for the time of the block."""
    if threads == 1:
        yield tar.chunk
        return
    # A thread that comes back from inflating must not wait 5 ms for the other's byte code.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    handoff = Handoff(CHUNKS_AHEAD)
    feeder = threading.Thread(target=_feed, args=(tar, handoff), name="inflate", daemon=True)
    feeder.start()
    try:
        yield handoff.take
    finally:
        handoff.abandon()


def _feed(tar: _Tar, handoff: Handoff) -> None:
    try:
        while found := tar.chunk():
            if not handoff.give(found):
                return
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other thread raises it.
        handoff.fail(error)
    else:
        handoff.give(b"")


def _unpack(archive: Archive, job: ExtractJob) -> Tree:
    tree = Tree(archive, bottom=job.bottom, limits=job.limits, remembered=job.remembered)
    name = b""
    try:
        while (header := archive.next()) is not None:
            name = header.name
            tree.add(header)
        archive.drain()
        tree.finish()
    except (OSError, ValueError) as error:
        raise as_fault(error, name) from error
    return tree


def _within(unpacked: int, packed: int, limits: Limits) -> None:
    if unpacked > limits.unpacked_bytes:
        raise Refused("LayerTooLarge", f"more than {limits.unpacked_bytes} bytes when unpacked", final=True)
    if unpacked > _RATIO_FROM and unpacked > limits.ratio * packed:
        raise Refused("LayerTooLarge", f"unpacks to more than {limits.ratio} times its size", final=True)
