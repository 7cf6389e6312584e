"""How many connections are good for throughput: grows while that grows, halves when a registry pushes back.

Pure: told what came and when, it answers with a number. The cap on connections is another matter, and the pool's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthTerms:
    """Seconds, connections, and what counts as more."""

    first: int = 4
    window: float = 0.25
    """Seconds over which throughput is measured."""
    gain: float = 1.08
    """Throughput must grow by this factor for a further step."""
    again: float = 15.0
    """Seconds after which a width that stopped growing is tried once more: links and registries change."""
    settle: float = 5.0
    """Seconds after a push back in which nothing changes: what is still under way was begun before."""


class Width:
    """A width between 1 and whatever the cap is when it is read."""

    def __init__(self, terms: WidthTerms) -> None:
        """Start small: the first answers tell more than any guess."""
        self._terms = terms
        self._width = max(1, terms.first)
        self._fallback = self._width
        self._best = 0.0
        self._window: tuple[float, int] | None = None
        self._hold_until = 0.0
        self._careful = False

    def __repr__(self) -> str:
        """Readable, since tests compare it."""
        return f"<width {self._width}{' careful' if self._careful else ''}>"

    def within(self, cap: int) -> int:
        """The width to use."""
        return max(1, min(self._width, cap))

    def observe(self, now: float, received: int, *, full: bool, cap: int) -> None:
        """Learn from throughput.

        Args:
            now: seconds, of a clock that only goes forward.
            received: bytes since the beginning of all.
            full: whether as many connections run as the width allows; else more would not be used.
            cap: connections that are allowed.
        """
        if not full or self._width >= cap:
            self._window = None
            return
        if self._window is None:
            self._window = (now, received)
            return
        began, before = self._window
        if now - began < self._terms.window:
            return
        self._window = (now, received)
        if now < self._hold_until:
            return
        rate = (received - before) / (now - began)
        if rate <= self._best * self._terms.gain:
            # The last step brought nothing. Later it is tried afresh, for the old best may be out of reach then.
            self._width = self._fallback
            self._hold_until = now + self._terms.again
            self._best = 0.0
            return
        self._best = rate
        self._fallback = self._width
        step = 1 if self._careful else max(1, self._width // 2)
        self._width = min(cap, self._width + step)
        # The first window of the new width would measure the old one's last answers too.
        self._hold_until = now + (self._terms.settle if self._careful else self._terms.window)

    def pushed_back(self, now: float, *, running: int) -> None:
        """A registry throttled, was overloaded or cut a connection, with so many connections on it.

        Those that fall together count once; afterwards it grows by single steps.
        """
        if self._careful and now < self._hold_until:
            return
        self._width = max(1, min(self._width, running) // 2)
        self._fallback = self._width
        self._careful = True
        self._best = 0.0
        self._window = None
        self._hold_until = now + self._terms.settle
