"""Names, addresses and paths of one cluster: everything that carries its name, decided in one place.

Pure apart from `subnet()`, which gives each cluster name a number of its own. The number picks addresses and ports:

    nodes      10.90.<n>.0/24    the bridge and the control plane at .1, node i at .10+i
    pods       10.<100+n>.<i>.0/24 on node i
    services   10.96.0.0/16      exists in the nodes' network namespaces only, so clusters don't collide
"""

import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.errors import ClusterError

NAME = re.compile(r"[a-z][a-z0-9]{0,7}")
NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
SUBNETS = 100
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
REGISTRY_PORT = 5000


def root() -> Path:
    """The folder of all clusters."""
    return Path(os.environ.get("IMAGEPREPULL_TESTBED") or "/var/lib/imageprepull-testbed")


@dataclass(frozen=True)
class Layout:
    """Where one cluster keeps things, and how they are called."""

    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            # 15 characters is all that an interface name may have.
            raise ClusterError("cluster", f"name {self.name!r} must match {NAME.pattern}")

    @property
    def folder(self) -> Path:
        return root() / self.name

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def records(self) -> Path:
        """One JSON file per process that was started: pid, start time."""
        return self.folder / "processes"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def bin(self) -> Path:
        """Links to the cached binaries, for PATH."""
        return self.folder / "bin"

    @property
    def cgroup(self) -> str:
        return f"imageprepull-{self.name}"

    @property
    def bridge(self) -> str:
        return f"ipp-{self.name}"

    def veth(self, index: int) -> str:
        """The host's end of a node's cable."""
        return f"ipp-{self.name}.{index}"

    def node_folder(self, node: str) -> Path:
        return self.folder / "nodes" / node

    @property
    def subnet(self) -> int:
        # Asked each time: `down` gives the number back, another cluster may have taken it since.
        return subnet(self.name)

    @property
    def host_ip(self) -> str:
        """The bridge's address: control plane and registry as the nodes see them."""
        return f"10.90.{self.subnet}.1"

    def node_ip(self, index: int) -> str:
        return f"10.90.{self.subnet}.{10 + index}"

    def pod_subnet(self, index: int) -> str:
        return f"10.{100 + self.subnet}.{index}.0/24"

    @property
    def server(self) -> str:
        return f"https://{self.host_ip}:6443"

    @property
    def registry_name(self) -> str:
        return f"{self.host_ip}:{REGISTRY_PORT}"

    @property
    def registry_port(self) -> int:
        """On 127.0.0.1 of the host, past the proxy."""
        return 15000 + 10 * self.subnet

    @property
    def proxy_port(self) -> int:
        """The control interface of the proxy, on 127.0.0.1 of the host."""
        return self.registry_port + 1


def subnet(name: str) -> int:
    """The number of this cluster, taken when it is asked for the first time."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / "subnets.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        taken: dict[str, int] = json.loads(file.read() or "{}")
        if name not in taken:
            free = [number for number in range(SUBNETS) if number not in taken.values()]
            if not free:
                raise ClusterError("cluster", f"all {SUBNETS} subnets are taken: {', '.join(taken)}")
            taken[name] = free[0]
            _rewrite(file.fileno(), taken)
        return taken[name]


def free_subnet(name: str) -> bool:
    """Give the number back; says whether this was the last cluster."""
    if not (root() / "subnets.json").exists():
        return True
    with (root() / "subnets.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        taken: dict[str, int] = json.loads(file.read() or "{}")
        if taken.pop(name, None) is not None:
            _rewrite(file.fileno(), taken)
        return not taken


def _rewrite(descriptor: int, taken: dict[str, int]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(taken).encode(), 0)
