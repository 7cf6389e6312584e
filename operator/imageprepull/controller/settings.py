"""What the operator is told: by flags in a pod, by tests directly. Every delay is here, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imageprepull.kube.access import ClusterAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """`access` is the API server; everything else has the defaults of a pod in the release namespace.

    `agent_namespace` and `agent_selector` find the agents' pods. `confirm_interval` lies between the two reads
    that must both miss an object before its images are let go.
    """

    access: ClusterAccess
    namespace: str = "imageprepull-system"
    lease_name: str = "imageprepull-operator"
    identity: str
    health_host: str = ""
    health_port: int = 8081
    hosts_dirs: tuple[Path, ...] = ()
    agent_namespace: str = "imageprepull-system"
    agent_selector: str = "app.kubernetes.io/name=imageprepull,app.kubernetes.io/component=agent"
    status_interval: float = 2
    status_writes_per_second: float = 5
    spec_writes_per_second: float = 10
    resync: float = 300
    confirm_interval: float = 30
    lease_seconds: float = 15
    crd_timeout: float = 60
    crd_interval: float = 5
    agent_timeout: float = 120
    debounce: float = 0.2
    event_interval: float = 600
    pace_interval: float = 5
    resolve_timeout: float = 300
    resolve_backoff: float = 5
    resolve_backoff_most: float = 300
    parallel_resolves: int = 4
    spec_workers: int = 4
    stuck_after: float = 300
    """A loop that has not come round for so long fails /livez."""
