"""Which connection fetches what next: one decision over all blobs of the node. Pure; `pool` starts what it says.

What blocks a chain comes first, and within a blob its lowest missing bytes, since a consumer follows the frontier.
Two bounds keep the rest moving: a blob leaves part of the width to others that want it, so that a registry that
holds one layer back does not hold all; and every so many starts go to whoever has waited longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from imageprepull.pulling.ranges import RangeMap, Span

FAIR_EVERY = 8
"""One start of so many goes to the blob that has waited longest: new images never keep an old one from ending."""


class Reach(Enum):
    """How a blob may be asked for."""

    UNKNOWN = "unknown"
    """Nobody knows whether its host does ranges: one request, and its answer decides."""
    RANGES = "ranges"
    """A 206 was seen: closed ranges over several connections."""
    STREAM = "stream"
    """One stream to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobWork:
    """A blob that still lacks bytes, as the decision sees it.

    Attributes:
        number: its order of arrival, which is its name here.
        priority: smaller for what blocks a chain.
        size: bytes.
        held: what is in the spool.
        busy: ranges that connections are fetching, or that wait after a fault; disjoint from each other.
        running: connections on it; as many as `busy` has ranges that do not wait.
        reach: how it may be asked for.
        served: the number of the start that gave it its last connection; of its arrival before the first.
        resting: not to be asked at all for now.
    """

    number: int
    priority: int
    size: int
    held: Sequence[Span] = ()
    busy: Sequence[Span] = ()
    running: int = 0
    reach: Reach = Reach.UNKNOWN
    served: int = 0
    resting: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to fetch `span` of the blob `number`."""

    number: int
    span: Span


def next_span(blob: BlobWork, range_size: int) -> Span | None:
    """The range that the next connection of a blob fetches, or None when there is none to begin now."""
    if blob.resting or (blob.reach is not Reach.RANGES and blob.busy):
        return None
    if blob.held or blob.busy:
        gap = RangeMap(blob.size, (*blob.held, *blob.busy)).gap_after(0)
    else:
        gap = (0, blob.size)  # as most are: an image may have a hundred layers that wait.
    if gap is None:
        return None
    start, end = gap
    if blob.reach is Reach.STREAM:
        return (start, blob.size)
    # Aligned, as caches like it: what a fault left of a range is asked for up to where that range ended.
    return (start, min(end, (start // range_size + 1) * range_size))


def share(width: int) -> int:
    """How many connections one blob may have while others want one."""
    return max(1, width - max(1, width // 4))


def assign(
    blobs: Iterable[BlobWork], *, width: int, cap: int, range_size: int, small: int, starts: int
) -> list[Start]:
    """What to begin now.

    Args:
        blobs: all that lack bytes.
        width: connections that the pool thinks good for throughput.
        cap: connections that are allowed; blobs of at most `small` bytes may use all of them, since what they
            cost is the wait for an answer and not the link.
        range_size: bytes of a range.
        small: bytes.
        starts: connections begun so far.
    """
    state = {blob.number: blob for blob in blobs}
    spans = {number: next_span(blob, range_size) for number, blob in state.items()}
    running = sum(blob.running for blob in state.values())
    begun: list[Start] = []
    while running < cap:
        wanting = [
            blob
            for number, blob in state.items()
            if spans[number] is not None and (running < width or blob.size <= small)
        ]
        if len(wanting) > 1:
            # One alone takes all: nobody else could use what it would leave.
            wanting = [blob for blob in wanting if blob.running < share(width)] or wanting
        if not wanting:
            break
        turn = starts + len(begun) + 1
        if turn % FAIR_EVERY:
            chosen = min(wanting, key=lambda blob: (blob.priority, blob.number))
        else:
            chosen = min(wanting, key=lambda blob: (blob.served, blob.number))
        span = spans[chosen.number]
        if span is None:
            raise AssertionError("only blobs with something to begin are wanting")
        begun.append(Start(chosen.number, span))
        chosen = replace(chosen, busy=(*chosen.busy, span), running=chosen.running + 1, served=turn)
        state[chosen.number] = chosen
        spans[chosen.number] = next_span(chosen, range_size)
        running += 1
    return begun
