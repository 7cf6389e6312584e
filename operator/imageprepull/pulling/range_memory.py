"""Which hosts don't do ranges, for a while: a pull-through cache that was cold yesterday serves them today."""

from __future__ import annotations


class RangeMemory:
    """By host, since a registry's mirror and its upstream differ; times in seconds of any clock that goes forward."""

    def __init__(self, seconds: float) -> None:
        """Believe an answer for so many seconds."""
        self._seconds = seconds
        self._without: dict[str, float] = {}
        self._origins: dict[str, str] = {}

    def learn(self, registry: str, origin: str, *, ranged: bool, now: float) -> None:
        """A range was asked of `registry`, and its host `origin` answered with it, or with the whole blob."""
        self._origins[registry] = origin
        if ranged:
            self._without.pop(origin, None)
        else:
            self._without[origin] = now + self._seconds

    def without(self, registry: str, now: float) -> bool:
        """Whether the host that answered last for `registry` is believed to have no ranges."""
        return self._without.get(self._origins.get(registry, ""), 0.0) > now
