"""What an operator of the agent may choose; filled by cli/agent.py. Delays are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from imageprepull.agent.accounts import Delays
from imageprepull.agent.disk_pressure import Margins
from imageprepull.agent.pace import Pace
from imageprepull.kube.access import ClusterAccess
from imageprepull.kube.informer import Timings
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.space import Thresholds


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """One agent of one node. `namespace` is the release's, where the pace ConfigMap and the operator's Lease live."""

    access: ClusterAccess
    node_name: str
    namespace: str
    address: str = "unix:///run/containerd/containerd.sock"
    hosts_dirs: tuple[Path, ...] = ()
    """Empty: what the runtime's own configuration says, else /etc/containerd/certs.d."""
    spool_dir: Path = Path("/var/lib/containerd/imageprepull")
    boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")
    health_host: str | None = None
    health_port: int = 9745
    keep_blobs: Literal["after", "before", "never"] = "after"
    sync: Literal["background", "before"] = "background"
    extraction: Literal["auto", "fast", "portable"] = "auto"
    pace: Pace = field(default_factory=Pace)
    delays: Delays = field(default_factory=Delays)
    pull: PullSettings = field(default_factory=PullSettings)
    thresholds: Thresholds = field(default_factory=Thresholds)
    margins: Margins = field(default_factory=Margins)
    disk_interval: float = 10
    """Between two looks at the disks; the kubelet takes its own as often."""
    watch: Timings = field(default_factory=Timings)
    operator_lease: str = "imageprepull-operator"
    lease_poll: float = 2
    """Between two looks at the operator's Lease, while a removal waits to see it renewed."""
    lease_margin: float = 5
    """So much longer than it lasts the Lease is looked at before the operator counts as away."""
    reconnect: float = 2
    """Between tries to reach the runtime, to get the spool's lock, and to get the port."""
    event_settle: float = 1
    """Events of the runtime come in swarms; presence is asked anew this long after the first."""
    live_after: float = 300
    """A reconcile loop or watch that has not moved for so long is dead."""
    stop_timeout: float = 10
