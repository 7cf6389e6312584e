"""Time and chance of the agent, in one object that tests replace."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta


class Clock:
    """`now` is monotonic seconds, for deciding; `stamp` is wall time, for people and other machines."""

    def now(self) -> float:
        """Seconds on a clock that never jumps."""
        return time.monotonic()

    def wall(self) -> datetime:
        """UTC."""
        return datetime.now(UTC)

    def uniform(self) -> float:
        """Jitter in [0, 1)."""
        return random.random()  # noqa: S311 - spreads load, guards nothing.

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        await asyncio.sleep(seconds)

    def stamp(self, ahead: float = 0) -> str:
        """RFC 3339 in whole seconds, `ahead` seconds from now."""
        return (self.wall() + timedelta(seconds=ahead)).strftime("%Y-%m-%dT%H:%M:%SZ")
