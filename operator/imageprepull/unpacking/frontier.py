"""How many contiguous bytes of a growing blob are there: the download advances it, whoever unpacks follows it.

Lives in the event loop of the agent's process; a worker asks for it through its socket (workers.py).
"""

from __future__ import annotations

import asyncio


class Frontier:
    """Bytes from the blob's start without a gap. `held` and `size` in bytes; `size` is the whole blob.

    A consumer never sees bytes change below the frontier. Where the download has to start anew, it fails this
    object and gives a new one: the consumer throws away what it made.
    """

    def __init__(self, size: int, held: int = 0) -> None:
        self.size = size
        self.held = 0
        self._error: Exception | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self.advance(held)

    def __repr__(self) -> str:
        return f"<Frontier {self.held}/{self.size}{f' failed: {self._error!r}' if self._error else ''}>"

    @property
    def complete(self) -> bool:
        """Whether all bytes are there."""
        return self.held == self.size

    def advance(self, held: int) -> None:
        """Say that the first `held` bytes are there; after `fail` it is too late to matter.

        Raises:
            ValueError: `held` is less than before, or more than the blob has.
        """
        if not self.held <= held <= self.size:
            raise ValueError(f"a frontier at {self.held} of {self.size} bytes cannot move to {held}")
        self.held = held
        self._wake()

    def fail(self, error: Exception) -> None:
        """End it: those who wait and those who come later get `error`. The first error stays."""
        self._error = self._error or error
        self._wake()

    async def beyond(self, offset: int) -> int:
        """Wait until more than `offset` bytes are there, or all; returns how many.

        Unbounded: the download has the timeouts, and fails the frontier when it gives up.

        Raises:
            Exception: what `fail` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self.held > offset or self.complete:
                return self.held
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
