"""From what nodes report of a registry's throttling to when they, and the operator, may ask it again. Pure.

Rule: the latest time that any node was told counts for every node. Nothing is guessed: a registry that names no pause
is each node's own backoff's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from imageprepull.controller import clock
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import NodePrepull, NodePrepullStatus, RegistryHold

THROTTLED = "Throttled"
"""What an agent calls a host that refused a request and named a pause; `Held` ones are our own orders come back."""
LONGEST = timedelta(hours=1)
"""A node whose clock is wrong must not stop the cluster for days; agents believe no longer pause themselves."""


def ordered_holds(statuses: Iterable[NodePrepullStatus], now: datetime) -> list[RegistryHold]:
    """Hosts that the nodes are to leave alone, by name.

    Reports are anonymous so far: what a registry says to one credential is not told to another one's users.
    """
    latest: dict[str, datetime] = {}
    for status in statuses:
        for registry in status.registries:
            if registry.state != THROTTLED or registry.credential_ref or not registry.until:
                continue
            until = clock.parse(registry.until)
            if until is None or until <= now:
                continue
            until = min(until, now + LONGEST)
            latest[registry.host] = max(until, latest.get(registry.host, until))
    longest = sorted(latest, key=lambda host: latest[host], reverse=True)[: bounds.REGISTRIES]
    return [RegistryHold(host=host, not_before=clock.rfc3339(latest[host])) for host in sorted(longest)]


def standing(
    current: Sequence[RegistryHold], wanted: Sequence[RegistryHold], now: datetime
) -> list[RegistryHold]:
    """What a node's spec should say, given what it says: the later of both for a host, and nothing that is over.

    A report that vanished takes nothing back: its node may have been answered by another host, or be gone.
    """
    times: dict[str, datetime] = {}
    for hold in (*current, *wanted):
        moment = clock.parse(hold.not_before)
        if moment is not None and moment > now:
            times[hold.host] = max(moment, times.get(hold.host, moment))
    return [RegistryHold(host=host, not_before=clock.rfc3339(times[host])) for host in sorted(times)][
        : bounds.REGISTRIES
    ]


def behind(current: Sequence[RegistryHold], wanted: Sequence[RegistryHold]) -> bool:
    """Whether a spec lacks one of the orders. What is over may stand in it until it is written anyway."""
    known = {hold.host: hold.not_before for hold in current}
    # RFC 3339 in UTC and whole seconds: as texts they have the order of the times.
    return any(known.get(hold.host, "") < hold.not_before for hold in wanted)


def own_holds(known: Iterable[NodePrepull], now: datetime) -> dict[str, float]:
    """Hosts that the operator itself leaves alone, as `time.time()` by host: what nodes were told, and what it told them.

    The reports alone would not do: one may vanish before its time is over.
    """
    objects = list(known)
    ordered = [hold for one in objects for hold in one.spec.registries]
    holds = standing(ordered, ordered_holds((one.status for one in objects), now), now)
    moments = {hold.host: clock.parse(hold.not_before) for hold in holds}
    return {host: moment.timestamp() for host, moment in moments.items() if moment is not None}


def has_work(status: NodePrepullStatus) -> bool:
    """Whether a node may want to ask a registry soon; others are told when they are given something to do."""
    summary = status.summary
    return summary is not None and summary.pulling + summary.waiting + summary.failed > 0
