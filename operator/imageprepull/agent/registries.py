"""What registries said about their limits, and what the operator ordered, as lines of a status. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum

from imageprepull.registry.rate_limits import RateLimit
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import RegistryHold, RegistryStatus


class RegistryState(StrEnum):
    """How a registry's host is dealt with.

    `THROTTLED`: it refused a request as one too many, the last one or with a pause that is not over. `HELD`: the operator says to leave it alone. `EXHAUSTED`: it
    answers, but says that no request is left in its window.
    """

    THROTTLED = "Throttled"
    HELD = "Held"
    EXHAUSTED = "Exhausted"
    OPEN = "Open"


def registry_statuses(
    limits: Mapping[str, RateLimit], holds: Mapping[str, float], now: float
) -> list[RegistryStatus]:
    """A line per host that has said something or is held: first those that are waited for, then by what is left.

    `holds` are hosts and times before which they are not asked, `now` is of the same clock: `time.time()`.
    """
    lines = [
        _line(host, limits.get(host, RateLimit()), holds.get(host, 0.0), now)
        for host in limits.keys() | holds.keys()
    ]
    lines.sort(key=lambda line: (line.until is None, _left(line), line.host))
    return lines[: bounds.REGISTRIES]


def _left(line: RegistryStatus) -> float:
    return math.inf if line.remaining is None else line.remaining


def _line(host: str, limit: RateLimit, held: float, now: float) -> RegistryStatus:
    until: float | None = None
    if limit.until is not None and limit.until > now:
        state, until = RegistryState.THROTTLED, limit.until
    elif held > now:
        state, until = RegistryState.HELD, held
    elif limit.refused:
        state = RegistryState.THROTTLED
    elif limit.remaining == 0:
        state = RegistryState.EXHAUSTED
    else:
        state = RegistryState.OPEN
    return RegistryStatus(
        host=host[: bounds.HOST],
        state=state.value,
        remaining=limit.remaining,
        window=limit.window,
        until=_stamp(until) if until is not None else None,
    )


def _stamp(moment: float) -> str:
    """RFC 3339 in whole seconds, never earlier: who reads it must not come too soon."""
    return datetime.fromtimestamp(math.ceil(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hold_times(holds: Sequence[RegistryHold]) -> dict[str, float]:
    """The operator's orders as `time.time()` by host; one that is no time is passed over, for the schema refuses it."""
    times: dict[str, float] = {}
    for hold in holds:
        try:
            moment = datetime.fromisoformat(hold.not_before)
        except ValueError:
            continue
        # Without a zone it would be taken for local time.
        times[hold.host] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return times
