"""What the registry proxy decides by and remembers: pace, holds, and who got which bytes. No sockets here.

Above it `proxy.py` moves the bytes. A node is named by its cluster name; "" stands for all nodes
together, "*" for each node by itself.
"""

import asyncio
import re
from dataclasses import dataclass, field

BLOB = re.compile(r"^/v2/(?P<repository>.+)/blobs/(?P<digest>[a-z0-9]+:[0-9a-f]+)$")
MANIFEST = re.compile(r"^/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)$")
EACH = "*"
BURST = 0.1
"""Seconds of its rate that a node may get at once."""
STEPS = (16 << 10, 256 << 10)
"""Bytes that are paced at once, at least and at most: small ones cost CPU, large ones are coarse at a low rate."""
STEP = 0.005
"""Seconds of its rate that a node gets at once, within these bounds."""


@dataclass(slots=True)
class Pace:
    """A rate in bytes per second (0: as fast as it goes) and a delay per request in seconds."""

    rate: float = 0
    delay: float = 0
    _due: float = 0

    def wait(self, size: int, now: float) -> float:
        """Seconds to wait before these bytes may go; takes the time for them from those who ask later."""
        if self.rate <= 0:
            return 0
        self._due = max(self._due, now - BURST) + size / self.rate
        return max(0.0, self._due - now)


@dataclass(slots=True)
class Hold:
    """Of one blob, no byte at offset `after` or beyond is delivered until it is released."""

    digest: str
    after: int
    node: str = ""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    """Responses that stand at the held byte now."""


@dataclass(slots=True)
class Delivery:
    """What one node got of one blob: intervals [first, end) as they were delivered, in bytes of the blob."""

    requests: int = 0
    intervals: list[tuple[int, int]] = field(default_factory=list)

    def add(self, first: int, size: int) -> None:
        """Note delivered bytes; those of one response that follow each other become one interval."""
        start = first
        if self.intervals and self.intervals[-1][1] == first:
            start = self.intervals.pop()[0]
        self.intervals.append((start, first + size))

    @property
    def bytes(self) -> int:
        return sum(end - first for first, end in self.intervals)

    @property
    def distinct(self) -> int:
        """Bytes of the blob that were delivered at least once."""
        total, covered = 0, 0
        for first, end in sorted(self.intervals):
            total += max(0, end - max(first, covered))
            covered = max(covered, end)
        return total


@dataclass(slots=True)
class Request:
    """One request as a node made it. Noted before its answer is passed on: no node knows more than the account."""

    node: str
    method: str
    path: str
    status: int
    range: str
    bytes: int = 0


class State:
    """All that the control interface shows and changes."""

    def __init__(self) -> None:
        self.paces: dict[str, Pace] = {"": Pace(), EACH: Pace()}
        self._shares: dict[str, Pace] = {}
        self.holds: list[Hold] = []
        self.requests: list[Request] = []
        self.deliveries: dict[str, dict[str, Delivery]] = {}

    def pace(self, node: str) -> list[Pace]:
        """What slows this node down: the pace of all, of each, and its own."""
        each = self.paces[EACH]
        share = self._shares.setdefault(node, Pace(each.rate, each.delay))
        return [self.paces[""], share, *([self.paces[node]] if node in self.paces else [])]

    def step(self, node: str) -> int:
        """Bytes to send at once."""
        rate = min((pace.rate for pace in self.pace(node) if pace.rate > 0), default=float("inf"))
        return int(max(STEPS[0], min(STEPS[1], rate * STEP)))

    def set_pace(self, node: str, rate: float | None, delay: float | None) -> None:
        """Change what is given."""
        pace = self.paces.setdefault(node, Pace())
        if rate is not None:
            pace.rate = rate
        if delay is not None:
            pace.delay = delay
        if node == EACH:
            self._shares.clear()

    def hold(self, digest: str, after: int, node: str) -> None:
        """Withhold from byte `after` on, from one node or from all."""
        self.holds.append(Hold(digest, after, node))

    def release(self, digest: str, node: str) -> int:
        """Release this blob's holds ("" for every blob, "" for every node); how many there were."""
        chosen = [hold for hold in self.holds if digest in ("", hold.digest) and node in ("", hold.node)]
        for hold in chosen:
            hold.released.set()
        self.holds = [hold for hold in self.holds if not hold.released.is_set()]
        return len(chosen)

    def held(self, node: str, digest: str) -> Hold | None:
        """The hold that stops this node's blob earliest."""
        matching = [hold for hold in self.holds if hold.digest == digest and hold.node in ("", node)]
        return min(matching, key=lambda hold: hold.after, default=None)

    def delivery(self, node: str, digest: str) -> Delivery:
        """The account of one blob on one node."""
        return self.deliveries.setdefault(node, {}).setdefault(digest, Delivery())

    def forget(self) -> None:
        """Start counting anew; paces and holds stay."""
        self.requests.clear()
        self.deliveries.clear()

    def as_json(self) -> dict[str, object]:
        """All of it, for the control interface."""
        return {
            "paces": {name: {"rate": pace.rate, "delay": pace.delay} for name, pace in self.paces.items()},
            "holds": [
                {"digest": hold.digest, "after": hold.after, "node": hold.node, "waiting": hold.waiting}
                for hold in self.holds
            ],
            "requests": [
                {
                    "node": request.node,
                    "method": request.method,
                    "path": request.path,
                    "status": request.status,
                    "range": request.range,
                    "bytes": request.bytes,
                }
                for request in self.requests
            ],
            "blobs": {
                node: {
                    digest: {"requests": one.requests, "bytes": one.bytes, "distinct": one.distinct}
                    for digest, one in blobs.items()
                }
                for node, blobs in self.deliveries.items()
            },
        }
