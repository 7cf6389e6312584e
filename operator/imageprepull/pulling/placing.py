"""Blobs into the content store without sending them: the spool's file gets a second name there, and is recorded.

containerd shares files between its namespaces: a write that expects a digest whose file the store has is complete at
once (core/metadata/content.go, the sharing policy `shared`, which is the default from 1.6 to 2.4). So a verified blob
costs two short transactions instead of being copied, hashed and written to disk a second time by the daemon.

A file that nothing records is removed by the runtime's own garbage collection, once it has a reason to look at
content: `collect_unrecorded` gives it one, where an agent may have died in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.leases import short_lease
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import private_ref
from imageprepull.runtime.errors import NotFound

log = structlog.get_logger(__name__)
_COLLECTIONS = 3
"""So often a file may be collected before it is recorded; then the blob is sent."""
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK}
"""What a link that will never be possible here answers."""


class Placing:
    """Whether and how files are placed, for one runtime.

    That the folder is the runtime's, on the spool's mount, and that it believes what lies there, is tried with a few
    bytes that nobody else has, before the first blob and again after a blob was not believed.

    Args:
        content_root: the folder of the runtime's content store as this process sees it; None where it is not known.
        spool_dir: where the files are now.
    """

    def __init__(self, content_root: Path | None, spool_dir: Path) -> None:
        self._blobs = None if content_root is None else content_root / "blobs" / "sha256"
        self._folder = self._blobs
        self._spool_dir = spool_dir
        self._tried = False
        self._turn = asyncio.Lock()

    @property
    def possible(self) -> bool:
        """Whether a blob will be the same file in spool and content store, as far as known."""
        return self._folder is not None

    def where(self, digest: str) -> str:
        """A blob of the content store for people: its digest, and its path where that is known."""
        if self._blobs is None:
            return digest
        return f"{digest} ({self._blobs / digest.removeprefix('sha256:')})"

    async def place(
        self, containerd: Containerd, blob: Descriptor, path: Path, labels: Mapping[str, str]
    ) -> bool:
        """Bring a blob into the content store and the lease of `containerd`; False: it has to be sent.

        `path` must hold the blob, verified, and not be written to any more.

        Raises:
            RuntimeFault: the runtime does not answer.
            OSError: the disk is full or fails.
        """
        folder = self._folder
        if folder is None or not blob.digest.startswith("sha256:"):
            return False
        try:
            async with self._turn:
                if not self._tried:
                    self._tried = await self._try(containerd, folder)
                if not self._tried:
                    return False
            return await self._placed(containerd, blob, path, labels, folder)
        except FileNotFoundError:
            return False  # the store has never had a blob, and makes the folder itself.
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise  # a full or failing disk would not take the blob by another way either.
            log.info("blobs cannot be placed, they are sent", error=str(error))
            self._folder = None
            return False

    async def _placed(
        self, containerd: Containerd, blob: Descriptor, path: Path, labels: Mapping[str, str], folder: Path
    ) -> bool:
        """Give the file its name and have it recorded. Raises as `place`, and FileNotFoundError without a store."""
        believed = await _recorded(
            containerd, blob, path, labels, folder, named=lambda: reached(Step.PLACED, blob.digest)
        )
        if believed is False:
            # Perhaps a daemon that was started with other rules: trying again tells.
            self._tried = False
        return believed is True

    async def mend(self, containerd: Containerd, digest: str, body: bytes) -> bool:
        """Put the bytes of a small blob in place of the damaged ones that the store has recorded.

        Raises:
            RuntimeFault: the runtime does not answer.
        """
        async with private_file(self._spool_dir, body) as path:
            blob = Descriptor("application/octet-stream", digest, len(body))
            return await self.place(containerd, blob, path, {})

    async def _try(self, containerd: Containerd, folder: Path) -> bool:
        """Whether a file was believed; if not, though it was there, none will be placed any more."""
        data = secrets.token_bytes(64)
        blob = _nameless(data)
        try:
            async with private_file(self._spool_dir, data) as draft:
                believed = await _recorded(containerd, blob, draft, {}, folder)
            if believed:
                with contextlib.suppress(NotFound):
                    await containerd.content.delete(blob.digest)
        finally:
            await in_thread(lambda: _target(folder, blob).unlink(missing_ok=True))
        if believed is False:
            log.info("the runtime does not share files of its content store, blobs are sent", folder=folder)
            self._folder = None
        return believed is True


def _target(folder: Path, blob: Descriptor) -> Path:
    return folder / blob.digest.removeprefix("sha256:")


async def _recorded(
    containerd: Containerd,
    blob: Descriptor,
    path: Path,
    labels: Mapping[str, str],
    folder: Path,
    *,
    named: Callable[[], None] = lambda: None,
) -> bool | None:
    """Give the file its name in `folder` and have it recorded; `named` is called between the two.

    False: the file is there, and not believed. None: it was collected each time, which says nothing of the runtime.
    Raises as `Placing.place`, and FileNotFoundError without a store.
    """
    target = _target(folder, blob)
    for _ in range(_COLLECTIONS):
        await in_thread(lambda: give_name(path, target))
        named()
        if await containerd.content.record(blob, labels):
            return True
        if await in_thread(target.exists):
            return False
        # A collection came in between, as after each deletion of ours: sending would cost much more.
    return None


def any_placed(spool_dir: Path) -> bool:
    """Whether a spool file has a second name, recorded or not. Blocks."""
    return any(path.stat().st_nlink > 1 for path in spool_dir.glob("sha256-*"))


async def collect_unrecorded(containerd: Containerd, labels: Mapping[str, str]) -> None:
    """Have the runtime remove files of its content store that nothing records; returns when it has.

    It looks for them only when content was deleted since it last did. `labels` say whose the lease is.

    Raises:
        RuntimeFault: the runtime does not answer.
    """
    data = secrets.token_bytes(64)
    blob = _nameless(data)
    async with short_lease(containerd, "collect", labels, sync=True) as leased:
        await leased.content.put(private_ref(blob.digest), blob, data, {})
        await leased.content.delete(blob.digest)


def _nameless(data: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


@asynccontextmanager
async def private_file(folder: Path, data: bytes) -> AsyncIterator[Path]:
    """A file with these bytes, named as the sweep of the spool knows it, for the time of the block."""
    path = folder / f"sha256-{secrets.token_hex(16)}"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(data)

    try:
        await in_thread(write)
        yield path
    finally:
        await in_thread(lambda: path.unlink(missing_ok=True))


def give_name(path: Path, target: Path) -> None:
    """Write the file at `path` to disk and give it the name `target` too, in place of what has that name.

    In one step: who reads the old file goes on reading it. Blocks until the file is on disk.

    Raises:
        OSError: it cannot be done, as over the border of a mount.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.placed")
    os.link(path, draft)
    try:
        fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o444)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        draft.rename(target)
    finally:
        # Where the target was this file already, renaming has left both names.
        draft.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
