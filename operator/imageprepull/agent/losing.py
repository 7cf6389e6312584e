"""An image that keeps vanishing: somebody (the kubelet's collection, a person, a script) takes it away again and again.

So does one whose pulls succeed and that is missing all the same. The first loss is mended at once. Each further one within an hour waits longer, lest the node does nothing but fetch
and throw away. Pure: no clock, no randomness of its own; the reconciler keeps the account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from imageprepull.agent.backoff import Backoff

REASON = "ImageLost"


@dataclass(frozen=True, slots=True)
class LossPace:
    """Seconds. `base`: before the second loss is mended, then doubled up to `cap`; `forget`: without a loss."""

    base: float = 30
    cap: float = 900
    forget: float = 3600


@dataclass(frozen=True, slots=True)
class Losses:
    """How often an image that was there was missing, in a row; `last` is when, on the clock of `lost`."""

    count: int = 0
    last: float = 0


def lost(
    losses: Losses, now: float, pace: LossPace, uniform: float, missing: str
) -> tuple[Losses, Backoff | None]:
    """One loss more, and the wait before it is mended, None for none. `uniform` in [0, 1) is the jitter.

    `missing` says what is not there.
    """
    if not losses.count or now - losses.last >= pace.forget:
        return Losses(1, now), None
    losses = replace(losses, count=losses.count + 1, last=now)
    delay = min(pace.cap, pace.base * 2.0 ** min(losses.count - 2, 32)) * (0.5 + 0.5 * uniform)
    message = (
        f"the image was brought and then missing {losses.count} times, each within {pace.forget:g} s of the time "
        f"before; does something remove it (the kubelet's image collection, a clean-up job)? Missing now: {missing}"
    )
    return losses, Backoff(0, False, REASON, message, delay)
