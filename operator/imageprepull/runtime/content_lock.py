"""How long to wait for another writer of the same blob: the decision, without clock and calls.

Under the shared ref name only one stream may write. Its lock cannot be asked for: an ingest with bytes may be in work,
or left behind by a writer that died, and only opening it tells. Each such try holds the metadata lock of containerd 1.x
for half a second, so tries become rare while nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class LockPatience:
    """Seconds: pauses between two looks, from the first to the longest; and without a new byte until we go on alone."""

    first_pause: float = 0.05
    longest_pause: float = 1.0
    without_progress: float = 30.0


class Verdict(Enum):
    """What to do after a look at the ingest."""

    WAIT = auto()
    OPEN = auto()
    PASS_BY = auto()


class LockWatch:
    """One wait for one ref, over all tries to open it. `now` is any clock that only grows, in seconds."""

    def __init__(self, patience: LockPatience, now: float) -> None:
        self._patience = patience
        self._moved = self._opened = now
        self._offset: int | None = None
        self._gap = patience.first_pause
        self.pause = patience.first_pause

    def see(self, offset: int | None, now: float) -> Verdict:
        """Judge the offset of the ingest, None for one that is gone; the next look comes after `pause`."""
        self.pause = min(2 * self.pause, self._patience.longest_pause)
        if offset is None:
            return Verdict.OPEN
        if offset != self._offset:
            # The first look cannot know whether there was a move, and does not count as one.
            if self._offset is not None:
                self._moved = now
            self._offset = offset
            return Verdict.WAIT
        if now - self._moved >= self._patience.without_progress:
            return Verdict.PASS_BY
        if now - self._opened >= self._gap:
            self._opened = now
            self._gap *= 2
            return Verdict.OPEN
        return Verdict.WAIT
