"""Layer blobs: each digest is downloaded once, whoever asks, and ingested into the content store when complete.

`Spool.growing` and `Spool.blob` join callers that want the same digest; `hold_blob` sees to it that the content store
has the blob and that the caller's own lease holds it, whoever brought it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.connection import Order
from imageprepull.pulling.download import Source, download
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.growing import Advanced, Growing, SharedBlob, SpoolRestarted
from imageprepull.pulling.keyed_lock import KeyedLock
from imageprepull.pulling.labels import ref_key, source_label
from imageprepull.pulling.leases import CONTENT
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.placing import Placing
from imageprepull.pulling.pool import Pool
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.sidecars import change_owners, digests_of, remove_spool
from imageprepull.pulling.spool import SpoolFile
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.threads import in_thread
from imageprepull.registry.client import RegistryClient
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.labels import merged_sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One caller's wish for a blob. `priority` is smaller for what blocks the chain.

    `owner`: the lease by which a next attempt will come for the bytes after a failure, also one after the last byte
    came; empty where none will.
    `received` is told (host, bytes) by the download that this caller started, so that bytes are counted once.
    `source`: where to get the blob without the registry, as `lambda offset: content.stream(digest, offset=offset)`.
    """

    reference: Reference
    descriptor: Descriptor
    lease: str
    priority: int
    owner: str
    advanced: Advanced
    received: Callable[[str, int], None]
    source: Source | None = None


class Spool:
    """All downloads of the process, by digest."""

    def __init__(
        self, registry: RegistryClient, folder: Path, limiter: Limiter, settings: PullSettings, boot_id: str
    ) -> None:
        """Nothing is created before the first blob is wanted. Connections are the slots of `limiter`."""
        self.folder = folder
        self._registry = registry
        self._pool = Pool(limiter, settings)
        self._settings = settings
        self._boot_id = boot_id
        self._shared: dict[str, SharedBlob] = {}
        # A digest's file is opened by one download at a time, also while the last one is being closed.
        self._opening = KeyedLock()

    @property
    def in_use(self) -> frozenset[str]:
        """Digests whose files somebody uses."""
        return frozenset(self._shared)

    @asynccontextmanager
    async def blob(self, wanted: Wanted) -> AsyncIterator[Path]:
        """The path of the complete, verified blob, for the time of the block; the last user deletes it.

        It stays for the owners whose blocks ended with an error, or who have not come yet.

        Raises:
            PullError: the download failed. One that another image started with another repository and that
                failed is tried again with our own.
        """
        async with self.growing(wanted) as growing:
            yield await _verified(growing)

    @asynccontextmanager
    async def growing(self, wanted: Wanted) -> AsyncIterator[Growing]:
        """The blob while it comes, for the time of the block; it begins when there is a file to read from.

        The file stays until the last block of any user has ended: who needs it later, when others are done with
        it, enters a block of its own before they leave theirs.

        Raises:
            PullError: as `blob`.
        """

        async def join(user: Growing) -> tuple[SharedBlob, bool]:
            shared = await self._join(wanted, user)
            return shared, shared.repository != wanted.reference.name

        async def leave(user: Growing, shared: SharedBlob) -> None:
            await self._leave(wanted, shared, user)

        growing = Growing(
            wanted.descriptor.size,
            priority=wanted.priority,
            advanced=wanted.advanced,
            join=join,
            leave=leave,
        )
        content = False
        try:
            await growing.enter()
            yield growing
            content = True
        finally:
            await finish_anyway(growing.leave(content=content), self._settings.cleanup_timeout)

    async def _join(self, wanted: Wanted, user: Growing) -> SharedBlob:
        digest = wanted.descriptor.digest
        async with self._opening.hold(digest):
            while (shared := await self._going_on(digest)) is not None and wanted.owner not in shared.owners:
                # It may end meanwhile.
                await in_thread(partial(shared.file.own, wanted.owner))
            if shared is None:
                file = SpoolFile(self.folder, wanted.descriptor, boot_id=self._boot_id, owner=wanted.owner)
                shared = SharedBlob(file=file, repository=wanted.reference.name, count=wanted.received)
                shared.task = asyncio.create_task(
                    self._run(digest, shared, wanted), name=f"download {digest}"
                )
                self._shared[digest] = shared
            shared.join(user)
            return shared

    async def _going_on(self, digest: str) -> SharedBlob | None:
        """The download of a digest whose file can be had; one that is being closed is waited for. With the digest's lock."""
        while (shared := self._shared.get(digest)) is not None and shared.closing:
            # It takes no lock for that.
            await asyncio.wait([shared.task])
        return shared

    async def _run(self, digest: str, shared: SharedBlob, wanted: Wanted) -> None:
        order = Order(
            registry=self._registry,
            reference=wanted.reference,
            descriptor=wanted.descriptor,
            spool=shared.file,
            pool=self._pool,
            settings=self._settings,
            listener=shared,
        )
        try:
            await download(order, wanted.source)
        except BaseException as error:
            # Closed before anybody learns of it: whoever tries again opens the same path.
            shared.closing = True
            try:
                await finish_anyway(asyncio.to_thread(shared.close), self._settings.cleanup_timeout)
            finally:
                if self._shared.get(digest) is shared:
                    del self._shared[digest]
            if isinstance(error, Exception):
                shared.ended(error)
            raise

    async def give_up(self, owner: str, *, entirely: bool = False) -> None:
        """Nobody will come for what `owner` has left; a file that others will come for stays, unless `entirely`.

        Raises:
            OSError: the disk fails.
        """
        # A file that somebody fills names its owners on disk only after a while, and at its end.
        digests = {digest for digest, shared in self._shared.items() if owner in shared.owners}
        digests.update(await in_thread(partial(digests_of, self.folder, owner)))
        for digest in sorted(digests):
            async with self._opening.hold(digest):
                shared = await self._going_on(digest)
                if shared is not None:
                    await in_thread(partial(shared.file.disown, owner))
                    # It may have ended meanwhile, with the name noted.
                    shared = await self._going_on(digest)
                if shared is not None:
                    continue
                if entirely:
                    await in_thread(partial(remove_spool, self.folder, digest))
                else:
                    await in_thread(partial(change_owners, self.folder, digest, drop={owner}))

    async def _leave(self, wanted: Wanted, shared: SharedBlob, user: Growing) -> None:
        """The last to leave stops a download that still runs, or deletes the file that nobody needs any more."""
        digest = wanted.descriptor.digest
        async with self._opening.hold(digest):
            shared.users.remove(user)
            # Who uses it twice, as a pull that holds it and has it ingested, has what it wants by the last to end.
            if user.content:
                shared.served.add(wanted.owner)
            else:
                shared.served.discard(wanted.owner)
            if shared.users:
                return
            try:
                shared.task.cancel()
                await asyncio.wait([shared.task])
                if not shared.task.cancelled() and shared.task.exception() is None:
                    await asyncio.to_thread(shared.close)
            finally:
                # Not before its owners are noted: who gives up looks for a file here first.
                if self._shared.get(digest) is shared:
                    del self._shared[digest]


async def _verified(growing: Growing) -> Path:
    """For who has not looked at the bytes before: wrong ones are none of its business."""
    while True:
        try:
            return await growing.verified()
        except SpoolRestarted:
            await growing.again()


async def hold_blob(
    containerd: Containerd,
    spool: Spool,
    placing: Placing,
    locks: KeyedLock,
    wanted: Wanted,
    *,
    labels: Mapping[str, str],
    complete: Callable[[], None],
    stall: float,
) -> None:
    """Bring a blob that the content store lacks into it, held by the lease of `containerd` (a lease-bound view).

    `labels` are what is known of it beside its source; each transaction more would cost a write to disk.
    `complete` is called when all bytes are here, before they are ingested. `stall`: seconds that the runtime may take
    no byte before the ingest is given up.
    """
    descriptor = wanted.descriptor
    async with spool.blob(wanted) as path:
        complete()
        # Not before it is complete: the ref's lock would make a pod's own pull wait for the registry twice.
        async with locks.hold(descriptor.digest):
            if await held_content(containerd, wanted.lease, wanted.reference, descriptor, labels):
                return
            all_labels = {**labels, **source_label(wanted.reference.domain, wanted.reference.path, labels)}
            if not await placing.place(containerd, descriptor, path, all_labels):
                await _ingest(containerd, descriptor, path, all_labels, stall)
            reached(Step.INGESTED, descriptor.digest)


async def _ingest(
    containerd: Containerd, descriptor: Descriptor, path: Path, labels: dict[str, str], stall: float
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(stall) as patience:
            await containerd.content.ingest(
                ref_key(descriptor),
                descriptor,
                path,
                labels,
                lambda _: patience.reschedule(loop.time() + stall),
            )
    except TimeoutError as error:
        raise PullError(
            "RuntimeStalled", f"the runtime took no byte of {descriptor.digest} for {stall:g} s"
        ) from error


async def held_content(
    containerd: Containerd,
    lease: str,
    reference: Reference,
    descriptor: Descriptor,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Whether the content store has a blob; if so, our lease holds it from now on, and it bears the `labels`.

    The order matters: AddResource of a missing blob succeeds, and Info alone keeps nothing alive.
    """
    if await containerd.content.info(descriptor.digest) is None:
        return False
    await containerd.leases.add_resource(lease, CONTENT, descriptor.digest)
    found = await containerd.content.info(descriptor.digest)
    if found is None:
        return False
    all_labels = merged_sources(found.labels, labels)
    missing = {key: value for key, value in all_labels.items() if found.labels.get(key) != value}
    missing |= source_label(reference.domain, reference.path, {**found.labels, **missing})
    if missing:
        await containerd.content.update_labels(descriptor.digest, missing)
    return True
