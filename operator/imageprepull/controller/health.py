"""What /livez and /readyz of the operator say. Checks read what the loops leave behind, never the API server."""

from __future__ import annotations

import time

from imageprepull.controller.leader import Leader
from imageprepull.controller.lease import Lease
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.informer import Informer
from imageprepull.telemetry.health import Check, Health

WATCH_SILENT = 180.0
"""Seconds without a word from a watch: bookmarks come every minute, reconnects back off for half of one."""


def add_checks(
    health: Health, standby: Standby, leader: Leader, lease: Lease, settings: OperatorSettings
) -> None:
    """Register the operator's checks."""
    for informer in standby.informers:
        health.live[f"watch-{informer.kind.plural}"] = _watch_alive(informer)
        health.ready[f"cache-{informer.kind.plural}"] = _cache_synced(informer)
    health.live["resync"] = _resync_alive(leader, lease, settings)
    health.live["lease"] = lambda: "the lease ran out" if _overdue(lease) else None
    health.ready["role"] = _role(leader, lease)
    health.ready["imageprepulls"] = lambda: leader.vouching.unreadable
    # Said, not failed: an operator that holds removals back does the rest of its work.
    health.notes["removals"] = leader.removals.problem
    health.notes["orders"] = leader.vouching.note


def _watch_alive(informer: Informer) -> Check:
    def check() -> str | None:
        if not informer.synced.is_set() or informer.sight.problem:
            # An API server that is away is not cured by restarting us.
            return None
        return f"nothing heard for {informer.sight.age:.0f} s" if informer.sight.age > WATCH_SILENT else None

    return check


def _cache_synced(informer: Informer) -> Check:
    return lambda: None if informer.synced.is_set() else informer.sight.problem or "not listed yet"


def _resync_alive(leader: Leader, lease: Lease, settings: OperatorSettings) -> Check:
    def check() -> str | None:
        if not lease.leading or not leader.listed:
            return None
        now = time.monotonic()
        planned = leader.beats.get("plan", leader.listed)
        limit = settings.resync + settings.stuck_after
        if now - leader.listed > limit:
            return f"ImagePrepulls were last listed {now - leader.listed:.0f} s ago"
        # Every list asks for a plan, so a plan that does not follow is stuck.
        return f"last planned {now - planned:.0f} s ago" if now - planned > limit else None

    return check


def _overdue(lease: Lease) -> bool:
    return lease.leading and time.monotonic() > lease.deadline


def _role(leader: Leader, lease: Lease) -> Check:
    def check() -> str | None:
        if lease.leading and not leader.listed:
            return "leading, ImagePrepulls not listed yet"
        return None

    return check
