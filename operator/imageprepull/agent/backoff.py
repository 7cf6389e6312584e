"""When a failed image is tried again. Pure: no clock, no randomness of its own; between plan.py and the reconciler.

An attempt that gained bytes starts the count anew: a slow but living download is not a failing one. After
`backoffLimit` attempts without progress, or at once on a permanent error, the image is Failed: its slot is free and it
is tried on a slow cadence, because what was permanent yesterday (a missing tag) may be mended today. What was fetched
until then waits for those tries too, where only the registry, its credentials or the runtime were missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from imageprepull.registry.holds import REGISTRY_HELD

LONGEST_RETRY_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended. `gained`: it brought bytes that its predecessors had not.

    `resumable`: it lay with others, and what was fetched is as good as it was.
    """

    reason: str
    message: str
    permanent: bool = False
    retry_after: float | None = None
    gained: bool = False
    resumable: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. `slow`: between tries of what has finally failed."""

    base: float = 2
    cap: float = 300
    slow: float = 900


@dataclass(frozen=True, slots=True)
class Backoff:
    """Attempts without progress so far, the last error, and seconds from now until the next try.

    `gives_up`: the slow tries begin from nothing, and what was fetched is not kept for them. What fails for good may
    never be asked for again. What fails again and again by the node's own doing may fail by what it has. An outage is
    neither, however long it lasts, nor are credentials that have expired: no byte is to be fetched twice because of
    them.
    """

    attempts: int
    final: bool
    reason: str
    message: str
    delay: float
    gives_up: bool = False


def after_failure(
    previous: Backoff | None, failure: Failure, *, limit: int, pace: Pace, uniform: float
) -> Backoff:
    """What follows a failed attempt. `uniform` in [0, 1) is the jitter: half to whole of a delay.

    A server's own Retry-After is a lower bound, never shortened by our cap, and stretched by up to a tenth: all nodes
    are told the same moment. An attempt that was held back before it asked anybody costs none of the `limit`.
    """
    if failure.reason == REGISTRY_HELD and not failure.permanent:
        wait = (failure.retry_after or pace.base) * (1 + 0.1 * uniform)
        return Backoff(previous.attempts if previous else 0, False, failure.reason, failure.message, wait)
    attempts = 1 if failure.gained or previous is None else previous.attempts + 1
    final = failure.permanent or attempts >= max(1, limit)
    if final:
        delay = pace.slow * (0.8 + 0.4 * uniform)
    else:
        # The exponent is bounded because 2.0**1024 overflows.
        delay = min(pace.cap, pace.base * 2.0 ** min(attempts - 1, 32)) * (0.5 + 0.5 * uniform)
    if failure.retry_after is not None:
        delay = max(delay, min(failure.retry_after * (1 + 0.1 * uniform), LONGEST_RETRY_AFTER))
    given_up = final and not failure.resumable
    return Backoff(attempts, final, failure.reason, failure.message, delay, given_up)


def patient(previous: Backoff | None, failure: Failure, seconds: float, uniform: float) -> Backoff:
    """After a failure that others end, in their own time: asked again about every `seconds`, and never counted."""
    delay = max(seconds * (0.8 + 0.4 * uniform), min(failure.retry_after or 0, LONGEST_RETRY_AFTER))
    return Backoff(previous.attempts if previous else 0, False, failure.reason, failure.message, delay)
