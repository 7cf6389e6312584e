"""What hosts say about how often they may be asked, kept as data: nothing here waits or refuses."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from imageprepull.registry.bounded import Bounded

HOSTS = 1000
_VALUE = re.compile(r"\s*(\d{1,12})\s*(?:;\s*w\s*=\s*(\d{1,9}))?")
_PREFIXES = ("ratelimit-", "x-ratelimit-")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What one host said last.

    `remaining` of `limit` requests are left in a window of `window` seconds; None where it was not said. `until` is
    the time (`time.time()`) before which the host does not want to be asked; None when it takes requests, or when it
    refused one as too many and named no time: then it is `refused`.
    """

    limit: int | None = None
    remaining: int | None = None
    window: int | None = None
    until: float | None = None
    refused: bool = False


class RateLimits(Bounded[str, RateLimit]):
    """By the host and port that answered: a mirror's limits are not its upstream's."""

    def __init__(self) -> None:
        super().__init__(HOSTS)

    def note(self, host: str, status: int, headers: Mapping[str, str]) -> None:
        """Read the headers of any answer; those of a 200 count, too."""
        found = parse(headers)
        if found is None and host not in self:
            return
        known = self.get(host, RateLimit())
        until = known.until if status == 429 else None  # noqa: PLR2004
        self[host] = replace(found or known, until=until, refused=False)

    def throttled(self, host: str, pause: float | None) -> None:
        """A host refused a request as one too many, and named `pause` seconds or nothing."""
        until = time.time() + pause if pause else None
        self[host] = replace(self.get(host, RateLimit()), until=until, refused=until is None)


def parse(headers: Mapping[str, str]) -> RateLimit | None:
    """Limit and rest from `ratelimit-limit: 100;w=21600` and its kin; None where neither is there."""
    for prefix in _PREFIXES:
        limit, window = _number(headers.get(f"{prefix}limit"))
        remaining, other = _number(headers.get(f"{prefix}remaining"))
        if limit is not None or remaining is not None:
            return RateLimit(limit, remaining, window if window is not None else other)
    return None


def _number(value: str | None) -> tuple[int | None, int | None]:
    found = _VALUE.match(value or "")
    if found is None:
        return None, None
    number, window = found.groups()
    return int(number), int(window) if window else None
