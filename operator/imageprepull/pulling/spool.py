"""The spool: one sparse file per blob beside the runtime's data, and a sidecar that says which bytes are good.

`filling` writes here at the bytes' offset, from several connections at once; extractor and ingest read up to the
frontier. The sidecar names the boot: after a crash of the process the page cache still has the bytes, after one of
the machine they are not to be believed. It names the owners too: sidecars.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.ranges import RangeMap
from imageprepull.pulling.sidecars import (
    Sidecar,
    change_owners,
    data_path,
    read_sidecar,
    remove_spool,
    sidecar_path,
    write_sidecar,
)

_READ = 256 * 1024
"""Bytes read back at once: they are hashed while they are in the processor's cache."""
_VECTOR = 512
"""Chunks of one pwritev; the kernel takes 1024."""


class _Sha256(Protocol):
    """The part of hashlib's objects that is used; hashlib exports no public name for their type."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class SpoolFile:
    """A blob on its way. Its methods block on the disk: call them in threads.

    `write` and `hash_on` may run at once, several times each, as long as no two write the same range. `own` and
    `disown` may be called at any time. The others need the file for themselves. `held` may be read from anywhere.
    """

    def __init__(self, folder: Path, descriptor: Descriptor, *, boot_id: str, owner: str = "") -> None:
        """Name the file; nothing is opened before `open`. `owner`: a lease that will come for it, if any."""
        self.path = data_path(folder, descriptor.digest)
        self.digest = descriptor.digest
        self.held = RangeMap(descriptor.size)
        self._folder = folder
        self._boot_id = boot_id
        self._owners = {owner} - {""}
        self._disowned: set[str] = set()
        self._fd = -1
        self._read_fd = -1
        self._hash: _Sha256 = hashlib.sha256()
        self._hashed = 0
        self._noted = 0
        self._file_lock = threading.Lock()
        self._map_lock = threading.Lock()
        self._hash_lock = threading.Lock()
        self._note_lock = threading.Lock()

    @property
    def opened(self) -> bool:
        """Whether `open` was called and `close` was not."""
        return self._fd >= 0

    @property
    def unhashed(self) -> int:
        """Bytes below the frontier that the hash has not seen."""
        return self.held.frontier - self._hashed

    @property
    def owners(self) -> frozenset[str]:
        """Who will come for the bytes, as far as is known before `open`."""
        return frozenset(self._owners)

    def own(self, owner: str) -> None:
        """Note that `owner` will come for the bytes, in a next attempt, too."""
        with self._note_lock:
            self._owners.add(owner)
            self._disowned.discard(owner)
            self._note()

    def disown(self, owner: str) -> None:
        """Note that `owner` will not."""
        with self._note_lock:
            self._owners.discard(owner)
            self._disowned.add(owner)
            # As in sidecars.py: one name too many does no harm.
            with contextlib.suppress(OSError):
                self._note()

    def reader(self) -> int:
        """A new read-only descriptor of the file as it is now, the caller's to close. Does not block."""
        with self._file_lock:
            return os.dup(self._read_fd)

    def open(self) -> None:
        """Open or create the file and believe the ranges that this boot's sidecar vouches for."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = read_sidecar(sidecar_path(self._folder, self.digest))
        believed = (
            known is not None
            and (known.digest, known.size, known.boot_id) == (self.digest, self.held.size, self._boot_id)
            and (self.path.exists() or not known.ranges)
        )
        if not believed:
            remove_spool(self._folder, self.digest)
        elif known is not None and not known.ranges:
            # A reset may not have come to it. Under another name somebody may be reading it (placing.py).
            self.path.unlink(missing_ok=True)
        # Who comes or goes right now is noted with what was believed.
        with self._note_lock:
            self._fd, self._read_fd = self._open_file()
            if believed and known is not None:
                self._owners |= known.all_owners - self._disowned
                written = os.fstat(self._fd).st_size
                self.held = RangeMap(
                    self.held.size,
                    [(start, end) for start, end in known.ranges if end <= written and start <= end],
                )
            self._noted = self.held.held

    def write(self, offset: int, chunks: Sequence[bytes], *, note_every: int) -> None:
        """Write `chunks` at `offset`, and note the ranges every so many bytes.

        Bytes that are held already stay as they are: the hash and consumers have seen them.
        """
        end = offset + sum(map(len, chunks))
        wanted = list(self.held.missing(offset, end))
        if wanted == [(offset, end)]:
            self._put(offset, chunks)
        elif wanted:
            whole = memoryview(b"".join(chunks))
            for start, stop in wanted:
                self._put(start, [whole[start - offset : stop - offset]])
        with self._map_lock:
            self.held.add(offset, end)
        # The usual case, bytes in order: no need to read back what is in hand. Else `hash_on` catches up.
        if self._hash_lock.acquire(blocking=False):
            try:
                if self._hashed == offset and wanted == [(offset, end)]:
                    for chunk in chunks:
                        self._hash.update(chunk)
                    self._hashed = end
            finally:
                self._hash_lock.release()
        if self.held.held - self._noted >= note_every:
            self.note()

    def hash_on(self, limit: int) -> None:
        """Let the hash follow the frontier by at most `limit` bytes, read back from the page cache."""
        with self._hash_lock:
            buffer = memoryview(bytearray(min(_READ, limit)))
            end = min(self.held.frontier, self._hashed + limit)
            while self._hashed < end:
                count = os.preadv(self._fd, [buffer[: end - self._hashed]], self._hashed)
                if not count:
                    raise OSError(f"{self.path} is shorter than the {end} bytes written to it")
                self._hash.update(buffer[:count])
                self._hashed += count

    def matches(self) -> bool:
        """Whether the complete blob has the digest it is named by."""
        self.hash_on(self.held.size)
        return self.held.complete and f"sha256:{self._hash.hexdigest()}" == self.digest

    def reset(self) -> None:
        """Forget every byte: they were not this blob's. Who reads them goes on seeing them: the file is a new one.

        Raises:
            OSError: there is no new file; who comes for a reader still gets the old one's, of which no byte counts.
        """
        with self._note_lock:
            new, old = None, (self._fd, self._read_fd)
            try:
                self._disclaim()
                self.path.unlink(missing_ok=True)
                new = self._open_file()
            finally:
                # Who comes for a reader meanwhile finds a file, and no more ranges than it has.
                with self._file_lock:
                    self._fd, self._read_fd = new or old
                    self.held = RangeMap(self.held.size)
                self._hash = hashlib.sha256()
                self._hashed = self._noted = 0
            _close(*old)

    def note(self) -> None:
        """Write the range map beside the bytes, for those who will come for them."""
        with self._note_lock:
            self._note()

    def close(self, *, keep: bool = True, served: Collection[str] = ()) -> None:
        """Close the file. Its ranges are noted for the owners; without an owner, or without `keep`, it is deleted.

        One that was never opened stays as it is, for its owners and those of before.

        `served` are owners no more: they have got what they wanted.

        Raises:
            OSError: the ranges cannot be noted; then the bytes are gone too, since nobody could find them.
        """
        with self._note_lock:
            self._owners -= set(served)
            if self._fd < 0:
                # What an earlier attempt left is as good as it was; who will come for it has changed meanwhile.
                change_owners(self._folder, self.digest, add=self._owners, drop={*self._disowned, *served})
                return
            keep = keep and bool(self._owners)
            try:
                if keep:
                    self._note()
            except OSError:
                keep = False
                raise
            finally:
                _close(self._fd, self._read_fd)
                self._fd = self._read_fd = -1
                if not keep:
                    remove_spool(self._folder, self.digest)

    def _note(self) -> None:
        """With the lock for notes; the file must be there, or the map would vouch for nothing."""
        if self._fd < 0:
            return
        held = self.held.ranges
        owners = sorted(self._owners)
        write_sidecar(self._folder, Sidecar(self.digest, self.held.size, self._boot_id, held, owners))
        self._noted = sum(end - start for start, end in held)

    def _disclaim(self) -> None:
        """Have the map vouch for no byte. It goes on naming the owners: who gives up looks for a name there."""
        try:
            owners = sorted(self._owners)
            write_sidecar(self._folder, Sidecar(self.digest, self.held.size, self._boot_id, owners=owners))
        except OSError:
            remove_spool(self._folder, self.digest)

    def _open_file(self) -> tuple[int, int]:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return fd, os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            os.close(fd)
            raise

    def _put(self, offset: int, chunks: Sequence[bytes | memoryview]) -> None:
        for first in range(0, len(chunks), _VECTOR):
            left = list(chunks[first : first + _VECTOR])
            while left:
                written = os.pwritev(self._fd, left, offset)
                offset += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = memoryview(left[0])[written:]


def _close(*descriptors: int) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):  # nothing is lost: the bytes are in the page cache already.
            os.close(fd)
