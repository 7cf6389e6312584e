"""How often agents may report, told through one shared ConfigMap instead of thousands of specs. Pure but for names.

Written by `pace_writer` when it changes, watched by name by every agent.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIGMAP = "imageprepull-pace"
STEPS = (2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds between reports: coarse, so that a rollout changes the object a handful of times."""
PULLING_PER_SECOND = 10
"""Half of the cluster's 20 NodePrepull writes a second; specs and state changes have the other half."""
STORM_NODES = 40
"""So many nodes that pull at the same time may all finish within two seconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between reports of progress and between heartbeats; whether state changes are spread as well."""

    report_interval: int
    heartbeat: int
    storm: bool

    def data(self) -> dict[str, str]:
        """The ConfigMap's data."""
        return {
            "reportIntervalSeconds": str(self.report_interval),
            "heartbeatSeconds": str(self.heartbeat),
            "storm": "true" if self.storm else "false",
        }


def pace_for(*, pulling: int, nodes: int) -> Pace:
    """The pace for so many pulling nodes in a cluster of so many."""
    interval = max(2.0, pulling / PULLING_PER_SECOND)
    step = next((step for step in STEPS if step >= interval), STEPS[-1])
    heartbeat = max(600, -(-nodes // 2))
    # Whole minutes: one more node must not mean one more write.
    return Pace(step, -(-heartbeat // 60) * 60, storm=pulling >= STORM_NODES)
