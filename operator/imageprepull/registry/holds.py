"""Hosts that are to be left alone for a while, because somebody who sees more than this process says so.

Set from outside through `client`, obeyed by `transport` before each request. What a host itself says about its limits
is kept in `rate_limits`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from imageprepull.registry.errors import ErrorKind, RegistryError

REGISTRY_HELD = "RegistryHeld"
"""Reason of a request that was not made."""


class Holds:
    """By host and port; times as of `time.time()`, since they come from another machine."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def order(self, until: Mapping[str, float]) -> None:
        """Leave these hosts alone until then, and no others."""
        self._until = dict(until)

    def standing(self) -> dict[str, float]:
        """The hosts that are held now, and until when."""
        now = self._clock()
        return {host: until for host, until in self._until.items() if until > now}

    def check(self, host: str, request: str) -> None:
        """Let a request through.

        Raises:
            RegistryError: RegistryHeld, throttled, with the seconds until the host may be asked.
        """
        left = self._until.get(host, 0.0) - self._clock()
        if left > 0:
            raise RegistryError(
                "not asked now: the registry has throttled this cluster, and is left alone for so long",
                reason=REGISTRY_HELD,
                kind=ErrorKind.THROTTLED,
                host=host,
                request=request,
                retry_after=left,
            )
