"""What is remembered of hosts: which mirrors do not answer, which blobs a host failed at, who does ranges.

Kept by the client for all pulls and used by `walk`. Nothing here is ever a reason not to ask at all: it only says
whom to ask last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.errors import RegistryError

HOSTS = 1000
BLOBS = 10_000
"""(host, digest) pairs that are remembered."""
LACKS = 300.0
"""Seconds that a host is asked last for what it said it does not have."""
FAULTY = 60.0
"""Seconds that a host is asked last for a blob that it failed at."""
FRUITLESS = 2
"""Streams of one blob without a byte after which a host counts as faulty for it."""
RANGES = 600.0
"""Seconds that a host's way with ranges is remembered."""

Clock = Callable[[], float]


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    opened: float = 0.0


class Breakers:
    """Which mirrors (by URL) are passed over: those that did not answer `threshold` times in a row, for `pause` seconds.

    Then one request goes through as a probe; only when it is answered the others follow. The pause begins anew with
    the probe, so that one that is never heard of again costs another pause and no more.
    """

    def __init__(self, threshold: int = 3, pause: float = 60, clock: Clock = time.monotonic) -> None:
        self._threshold = threshold
        self._pause = pause
        self._clock = clock
        self._circuits: Bounded[str, _Circuit] = Bounded(HOSTS)

    def allows(self, host: str) -> bool:
        """Whether to ask a host now; a True after a pause is the probe."""
        circuit = self._circuits.touch(host)
        if circuit is None or circuit.failures < self._threshold:
            return True
        now = self._clock()
        if now < circuit.opened + self._pause:
            return False
        circuit.opened = now
        return True

    def answered(self, host: str) -> None:
        """Any answer at all: the host is there."""
        self._circuits.pop(host, None)

    def unanswered(self, host: str) -> None:
        """No connection, or no head of an answer in time."""
        circuit = self._circuits.touch(host)
        if circuit is None:
            circuit = self._circuits[host] = _Circuit()
        circuit.failures += 1
        circuit.opened = self._clock()


@dataclass(slots=True)
class _Fault:
    until: float = 0.0
    fruitless: int = 0


class FaultMemory:
    """What hosts failed at, by (host, digest), and who served wrong bytes."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._faults: Bounded[tuple[str, str], _Fault] = Bounded(BLOBS)
        self.distrusted: Bounded[tuple[str, str], None] = Bounded(BLOBS)

    def rank(self, host: str, digest: str) -> int:
        """The lower the sooner: 0 nothing is known, 1 it failed lately, 2 it served wrong bytes."""
        if (host, digest) in self.distrusted:
            return 2
        fault = self._faults.get((host, digest))
        return int(fault is not None and self._clock() < fault.until)

    def refused(self, host: str, digest: str, error: RegistryError) -> None:
        """A request was answered by an error. One that was not answered is the breaker's affair."""
        if not error.unanswered:
            pause = LACKS if error.reason == "NotFound" else max(FAULTY, error.retry_after or 0)
            self._fault(host, digest).until = self._clock() + pause

    def stream_ended(self, host: str, digest: str, error: RegistryError | None, *, gained: bool) -> None:
        """A stream came to its end or broke off; one that brought bytes is no fault of the host."""
        if error is None or gained:
            if error is None or (host, digest) in self._faults:
                self._faults.pop((host, digest), None)
            return
        fault = self._fault(host, digest)
        fault.fruitless += 1
        if fault.fruitless >= FRUITLESS:
            fault.until = self._clock() + FAULTY

    def _fault(self, host: str, digest: str) -> _Fault:
        fault = self._faults.touch((host, digest))
        if fault is None:
            fault = self._faults[host, digest] = _Fault()
        return fault


class Ranges(Enum):
    """What a host did when it was asked for a part of a blob.

    `IGNORED`: the whole blob came, as from a pull-through cache that is still being filled: a part may be asked for
    later, but to ask for several at once would fetch the blob as often. `REFUSED`: an error or silence; parts are
    not asked for.
    """

    SERVED = auto()
    IGNORED = auto()
    REFUSED = auto()


class RangeMemory:
    """How hosts (by URL) deal with ranges; forgotten after a while, since a cache that was cold becomes warm."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._known: Bounded[str, tuple[Ranges, float]] = Bounded(HOSTS)
        self._asked: Bounded[str, str] = Bounded(HOSTS)

    def known(self, host: str) -> Ranges | None:
        """What it did last, or None while nothing is known."""
        did, until = self._known.get(host, (None, 0.0))
        return did if self._clock() < until else None

    def learn(self, registry: str, host: str, did: Ranges) -> None:
        """A part was asked of `registry`, and it was this host of it that answered."""
        self._known[host] = did, self._clock() + RANGES
        self._asked[registry] = host

    def without(self, registry: str) -> bool:
        """Whether the host that answered last for `registry` is believed to give whole blobs only."""
        return self.known(self._asked.get(registry, "")) in (Ranges.IGNORED, Ranges.REFUSED)
