"""A blob for consumers that don't wait until all of it is here: its file, and how far it may be read.

`SharedBlob` is the one download of a digest, `Growing` a consumer's part in it. `blobs.Spool` brings them together.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.spool import SpoolFile
from imageprepull.unpacking.frontier import Frontier

Advanced = Callable[[int], None]
"""Told how many bytes are held; the first time when bytes of an earlier attempt or a stream are there."""


class SpoolRestarted(Exception):
    """The bytes seen so far were not the blob's, or can no longer be had there: start anew."""


@dataclass(slots=True, eq=False)
class SharedBlob:
    """A download in progress or just finished, and who uses its file. It listens to the download for them.

    `received` is told of bytes by host. `served`: the owners who have got from the file what they wanted. `closing`: it
    has failed, and the file can be had no more, though the failure is told only when it is closed.
    """

    file: SpoolFile
    repository: str
    count: Callable[[str, int], None]
    task: asyncio.Task[None] = field(init=False)
    users: list[Growing] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    closing: bool = False
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def priority(self) -> int:
        """That of the most urgent user."""
        return min((user.priority for user in self.users), default=0)

    @property
    def failed(self) -> bool:
        """Whether the download itself ended in an error."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is not None

    @property
    def owners(self) -> frozenset[str]:
        """Who will come for the file, and nobody, who owns everything."""
        return self.file.owners | {""}

    def close(self) -> None:
        """When nobody uses it any more; the file stays for who has not got what it wants. Blocks."""
        self.file.close(served=self.served)

    def join(self, user: Growing) -> None:
        """Take part from now on."""
        self.users.append(user)
        if self._open.is_set():
            user.advanced(self.file.held.held)

    def opened(self) -> None:
        """For the download: bytes of an earlier attempt may be there."""
        self._open.set()
        self._tell()

    def received(self, host: str, count: int) -> None:
        """For the download: more bytes are there."""
        if count:
            self.count(host, count)
        self._tell()

    def restarted(self) -> None:
        """For the download: the file is a new one, without bytes."""
        for user in self.users:
            user.restart(self.file)
        self._tell()

    def ended(self, error: Exception) -> None:
        """For the download: no more bytes will come."""
        for user in self.users:
            user.fail(error)

    async def readable(self) -> None:
        """Wait until the file is open. Raises what the download failed with before that."""
        opening = asyncio.ensure_future(self._open.wait())
        try:
            await asyncio.wait([opening, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            opening.cancel()
        if self.closing:
            await asyncio.wait([self.task])
        if self.task.done():
            self.task.result()

    def _tell(self) -> None:
        held, frontier = self.file.held.held, self.file.held.frontier
        for user in self.users:
            user.advanced(held)
            user.advance(frontier)


class Growing:
    """A consumer's view. `fd` is a read-only file of the blob, for pread; `frontier` says how far it may be read.

    When `frontier` or `verified` raises SpoolRestarted: throw away what was made of the bytes, `await again()`, and
    go on with the new `fd` and `frontier`. Before `verified` has returned nothing may be believed, neither what was
    made of the bytes nor that they cannot be used. Several who share one view tell by the identity of `frontier`
    whether it was theirs that was verified.
    """

    def __init__(
        self,
        size: int,
        *,
        priority: int,
        advanced: Advanced,
        join: Callable[[Growing], Awaitable[tuple[SharedBlob, bool]]],
        leave: Callable[[Growing, SharedBlob], Awaitable[None]],
    ) -> None:
        """`join` takes part in a download, and says whether another repository's caller began it."""
        self.priority = priority
        self.advanced = advanced
        self.frontier = Frontier(size)
        self._join = join
        self.content = False
        """Whether the consumer has got what it wanted."""
        self._leave = leave
        self._shared: SharedBlob | None = None
        self._foreign = False
        self._fds: list[int] = []
        self._following = False
        self._stale = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def fd(self) -> int:
        """Valid until the consumer leaves, also after a restart. Not the consumer's to close."""
        return self._fds[-1]

    @property
    def path(self) -> Path:
        """Where the bytes are now; after `verified`, where they stay until the consumer leaves."""
        return self._part().file.path

    @property
    def placed(self) -> bool:
        """Whether the file has a second name in the content store (placing.py), and so takes no room of its own."""
        return os.fstat(self.fd).st_nlink > 1

    async def enter(self) -> None:
        """Take part, and wait until there is a file.

        Raises:
            PullError: the download failed before that.
        """
        while True:
            if self._shared is None:
                self._shared, self._foreign = await self._join(self)
            try:
                await self._shared.readable()
            except PullError:
                if not self._elsewhere():
                    raise
                await self._part_with()
            else:
                self.restart(self._shared.file)
                return

    async def again(self) -> None:
        """After SpoolRestarted: wait until there is a file to start anew with. Raises as `enter`."""
        async with self._turn:
            if self._elsewhere():
                await self._part_with()
            if not self._following:
                await self.enter()
            self._stale.clear()

    async def verified(self) -> Path:
        """Wait until the whole blob is here and has its digest; its path.

        Raises:
            SpoolRestarted: not what has been read so far; it is being downloaded again, or will be by `again`.
            PullError: the download failed.
        """
        async with self._turn:
            shared = self._shared
        if shared is None:
            raise SpoolRestarted
        stale = asyncio.ensure_future(self._stale.wait())
        try:
            await asyncio.wait([stale, shared.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stale.cancel()
        if self._stale.is_set() or self._elsewhere():
            raise SpoolRestarted
        shared.task.result()
        return shared.file.path

    async def leave(self, *, content: bool) -> None:
        """Close what was open. `content`: the consumer has got what it wanted."""
        try:
            if self._shared is not None:
                self.content = content
                await self._part_with()
        finally:
            while self._fds:
                os.close(self._fds.pop())

    def advance(self, frontier: int) -> None:
        """For the download: so many contiguous bytes are there."""
        if self._following:
            self.frontier.advance(frontier)

    def restart(self, file: SpoolFile) -> None:
        """For the download: the file is another one. Who waits or reads on learns of it by the old frontier."""
        self._fds.append(file.reader())
        if self._following:
            self._stale.set()
        self._following = True
        old, self.frontier = self.frontier, Frontier(file.held.size, file.held.frontier)
        old.fail(SpoolRestarted())

    def fail(self, error: Exception) -> None:
        """For the download: no more bytes will come from it."""
        self._following = False
        self.frontier.fail(SpoolRestarted() if self._foreign and isinstance(error, PullError) else error)

    def _part(self) -> SharedBlob:
        if self._shared is None:
            raise RuntimeError("a blob is used outside of its block")
        return self._shared

    def _elsewhere(self) -> bool:
        """Whether what failed was another repository's download; ours may do better."""
        return self._foreign and self._shared is not None and self._shared.failed

    async def _part_with(self) -> None:
        self._following = False
        shared, self._shared = self._part(), None
        await self._leave(self, shared)
