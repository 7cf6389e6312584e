"""Whether and when a failed download is tried again within the same pull. Pure; `download` sleeps and asks again."""

from __future__ import annotations

from dataclasses import dataclass

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.settings import PullSettings


@dataclass(slots=True)
class RetryState:
    """Failures of one blob since the last byte gained."""

    failures: int = 0

    def decide(
        self, error: PullError, *, gained: bool, chance: float, settings: PullSettings
    ) -> float | None:
        """Seconds to wait before the next attempt, or None when `error` is the pull's.

        Args:
            error: what ended the attempt.
            gained: whether the attempt brought new bytes.
            chance: 0 to 1, the jitter: half of the exponential delay is fixed, half is random.
            settings: bounds.
        """
        self.failures = 1 if gained else self.failures + 1
        if error.permanent or self.failures > settings.attempts_without_progress:
            return None
        delay = min(settings.backoff_cap, settings.backoff_base * 2.0 ** (self.failures - 1))
        delay *= 0.5 + chance / 2
        if error.retry_after is not None:
            if error.retry_after > settings.longest_obeyed_retry_after:
                return None
            delay = max(delay, error.retry_after)
        return delay
