"""A bounded hand-over of chunks from one thread to another: the giver waits when the taker is behind."""

from __future__ import annotations

import threading
from collections import deque


class Handoff:
    """One giver, one taker."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._error: BaseException | None = None
        self._abandoned = False

    def give(self, chunk: bytes) -> bool:
        """Hand a chunk over; False when nobody wants it any more."""
        with self._changed:
            while len(self._chunks) >= self._most and not self._abandoned:
                self._changed.wait()
            self._chunks.append(chunk)
            self._changed.notify()
            return not self._abandoned

    def fail(self, error: BaseException) -> None:
        """Let the taker raise `error` after the chunks given before."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def take(self) -> bytes:
        """The next chunk. Raises what the giver failed with."""
        with self._changed:
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            chunk = self._chunks.popleft()
            self._changed.notify()
            return chunk

    def abandon(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()
