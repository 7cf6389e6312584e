"""The spool: one sparse file per blob beside the runtime's data, and a sidecar that says which bytes are good.

`download` writes here at the bytes' offset; `ingest` (and later the extractor) reads up to the frontier. The
sidecar names the boot: after a crash of the process the page cache still has the bytes, after one of the machine
they are not to be believed. It names the lease too, so that a sweep knows whose file it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.ranges import RangeMap

_READ = 1024 * 1024


class _Sha256(Protocol):
    """The part of hashlib's objects that is used; hashlib exports no public name for their type."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Sidecar(msgspec.Struct, frozen=True):
    """What is known about a spool file: written after the bytes it vouches for."""

    digest: str
    size: int
    boot_id: str
    lease: str
    ranges: list[tuple[int, int]] = []


def data_path(folder: Path, digest: str) -> Path:
    """Where the bytes of a blob are."""
    return folder / digest.replace(":", "-")


def sidecar_path(folder: Path, digest: str) -> Path:
    """Where its range map is."""
    return folder / f"{digest.replace(':', '-')}.json"


def _draft_path(folder: Path, digest: str) -> Path:
    """Where a range map is before it is complete."""
    return sidecar_path(folder, digest).with_suffix(".tmp")


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar at `path`, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sidecar)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def remove_spool(folder: Path, digest: str) -> None:
    """Delete a blob's bytes and range map; the map first, since it must never outlive what it vouches for."""
    sidecar_path(folder, digest).unlink(missing_ok=True)
    _draft_path(folder, digest).unlink(missing_ok=True)
    data_path(folder, digest).unlink(missing_ok=True)


class SpoolFile:
    """A blob on its way. Its methods block on the disk: call them in a thread, one at a time."""

    def __init__(self, folder: Path, descriptor: Descriptor, *, boot_id: str, lease: str) -> None:
        """Name the file; nothing is opened before `open`."""
        self.path = data_path(folder, descriptor.digest)
        self.digest = descriptor.digest
        self.held = RangeMap(descriptor.size)
        self._folder = folder
        self._boot_id = boot_id
        self._lease = lease
        self._fd = -1
        self._hash: _Sha256 = hashlib.sha256()
        self._hashed = 0
        self._noted = 0

    @property
    def opened(self) -> bool:
        """Whether `open` was called and `close` was not."""
        return self._fd >= 0

    def open(self) -> None:
        """Open or create the file and believe the ranges that this boot's sidecar vouches for."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = read_sidecar(sidecar_path(self._folder, self.digest))
        believed = (
            known is not None
            and (known.digest, known.size, known.boot_id) == (self.digest, self.held.size, self._boot_id)
            and self.path.exists()
        )
        if not believed:
            remove_spool(self._folder, self.digest)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if believed and known is not None:
            written = os.fstat(self._fd).st_size
            self.held = RangeMap(
                self.held.size,
                [(start, end) for start, end in known.ranges if end <= written and start <= end],
            )
        self._noted = self.held.held
        self._hash_frontier()

    def write(self, offset: int, chunks: Sequence[bytes], *, note_every: int) -> None:
        """Write `chunks` at `offset`, follow the frontier with the hash, note the ranges every so many bytes."""
        start = offset
        for chunk in chunks:
            remaining = memoryview(chunk)
            while remaining:
                written = os.pwrite(self._fd, remaining, offset)
                offset += written
                remaining = remaining[written:]
        self.held.add(start, offset)
        if start == self._hashed:
            # The usual case, sequential arrival: no need to read back what is in hand.
            for chunk in chunks:
                self._hash.update(chunk)
            self._hashed = offset
        self._hash_frontier()
        if self.held.held - self._noted >= note_every:
            self.note()

    def matches(self) -> bool:
        """Whether the complete blob has the digest it is named by."""
        return self.held.complete and f"sha256:{self._hash.hexdigest()}" == self.digest

    def reset(self) -> None:
        """Forget every byte: they were not this blob's."""
        sidecar_path(self._folder, self.digest).unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        self.held = RangeMap(self.held.size)
        self._hash = hashlib.sha256()
        self._hashed = self._noted = 0

    def note(self) -> None:
        """Write the range map beside the bytes, replacing the old one in one step."""
        sidecar = Sidecar(self.digest, self.held.size, self._boot_id, self._lease, self.held.ranges)
        draft = _draft_path(self._folder, self.digest)
        draft.write_bytes(msgspec.json.encode(sidecar))
        draft.replace(sidecar_path(self._folder, self.digest))
        self._noted = self.held.held

    def close(self, *, keep: bool) -> None:
        """Close the file; with `keep` its ranges are noted for the next attempt, else it is deleted.

        Raises:
            OSError: the ranges cannot be noted; then the bytes are gone too, since nobody could find them.
        """
        if self._fd < 0:
            return
        try:
            if keep:
                self.note()
        except OSError:
            keep = False
            raise
        finally:
            with contextlib.suppress(OSError):  # nothing is lost: the bytes are in the page cache already.
                os.close(self._fd)
            self._fd = -1
            if not keep:
                remove_spool(self._folder, self.digest)

    def _hash_frontier(self) -> None:
        while self._hashed < self.held.frontier:
            data = os.pread(self._fd, min(_READ, self.held.frontier - self._hashed), self._hashed)
            if not data:
                raise OSError(f"{self.path} is shorter than the {self.held.frontier} bytes written to it")
            self._hash.update(data)
            self._hashed += len(data)
