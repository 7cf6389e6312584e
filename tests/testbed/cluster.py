"""A whole cluster by its name: what the command line and the tests use.

cluster = Cluster("demo")
cluster.up()
cluster.kubectl("get", "nodes")
cluster.node("a").crictl("images")
cluster.proxy.pace(rate=25e6)
cluster.down()
"""

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tests.testbed import binaries, cgroups, network, packages, sysctls
from tests.testbed.build import build
from tests.testbed.certificates import Authority
from tests.testbed.commands import disinherit, inherit, run, wait_until
from tests.testbed.control_plane import ControlPlane
from tests.testbed.errors import ClusterError
from tests.testbed.layout import NODE_NAME, Layout, free_subnet, root
from tests.testbed.node import DEFAULT_DISK, Node
from tests.testbed.proxy_client import ProxyClient
from tests.testbed.registry import Registry
from tests.testbed.sandbox import Sandbox

NODES = ("a", "b", "c")
READY_TIMEOUT = 120.0
"""Seconds from start to Ready of all nodes, on a busy machine."""


class Cluster:
    """The throw-away cluster of this name, whether it runs or not."""

    def __init__(self, name: str = "demo") -> None:
        self.name = name
        self.layout = Layout(name)
        self.authority = Authority(self.layout)
        self.sandbox = Sandbox(self.layout, "control")

    @cached_property
    def control_plane(self) -> ControlPlane:
        return ControlPlane(self.layout, self.authority, self.sandbox)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.layout, self.sandbox)

    # Up and down.

    def up(self, nodes: Sequence[str] = NODES, *, disk: int = DEFAULT_DISK) -> None:
        """Make all of it run: build, start or repair, and wait until every node is Ready. Idempotent."""
        packages.install()
        build()
        with self._locked():
            started = time.monotonic()
            self.layout.folder.mkdir(parents=True, exist_ok=True)
            sysctls.prepare()
            network.ensure_bridge(self.layout)
            self._register(nodes, disk)
            self.authority.ensure()
            self.authority.kubeconfig(self.layout.kubeconfig, "admin", "system:masters")
            self._link_binaries()
            self.sandbox.start()
            self.control_plane.start()
            self.registry.start()
            with ThreadPoolExecutor(max_workers=8) as pool:
                _each(pool, [node.start for node in self.nodes()])
            self._route_pods()
            self.control_plane.wait()
            for node in self.nodes():
                node.start_kube_proxy()
            self.registry.wait()
            self.wait_ready()
            print(
                f"cluster {self.name}: {len(self.nodes())} nodes Ready after {time.monotonic() - started:.1f} s",
                flush=True,
            )

    def down(self) -> None:
        """Leave nothing of it, whatever state it is in."""
        with self._locked():
            cgroups.kill(self.layout.cgroup, "cluster")
            network.remove(self.layout)
            wait_until("cluster", "its disks are unmounted", lambda: not self._loops(), timeout=60)
            cgroups.remove(self.layout.cgroup, "cluster")
            shutil.rmtree(self.layout.folder, ignore_errors=True)
            if self.layout.folder.exists():
                shutil.rmtree(self.layout.folder)
            if free_subnet(self.name):
                sysctls.restore()
            self._lock_file.unlink(missing_ok=True)

    def wait_ready(self, nodes: Sequence[str] = (), timeout: float = READY_TIMEOUT) -> None:
        """Until these nodes, or all, are Ready; names those that are not, with a reason."""
        names = set(nodes or self._registered())
        last: dict[str, str] = {}

        def ready() -> bool:
            for node in map(self.node, names):
                node.containerd.check_alive()
                node.kubelet.check_alive()
                node.kube_proxy.check_alive()
            last.clear()
            last.update({name: self._not_ready(name) for name in names})
            return not any(last.values())

        try:
            wait_until("nodes", "Ready", ready, timeout=timeout, interval=0.3)
        except ClusterError as error:
            if error.component != "nodes":
                raise
            name = next(name for name, reason in last.items() if reason)
            log = self.node(name).kubelet.log
            raise ClusterError(
                f"node {name}", f"not Ready within {timeout:.0f} s: {last[name]}", log
            ) from None

    def _not_ready(self, name: str) -> str:
        """Why a node is not Ready: "" when it is. A condition from before the kubelet's start does not count."""
        try:
            node = json.loads(self.kubectl("get", "node", name, "-o", "json"))
        except ClusterError as error:
            return str(error).splitlines()[0]
        conditions = {condition["type"]: condition for condition in node["status"].get("conditions", [])}
        ready = conditions.get("Ready", {"status": "Unknown", "message": "the kubelet has not reported yet"})
        if ready["status"] != "True":
            return str(ready["message"])
        if not self.node(name).services_work():
            return f"kube-proxy has not written its rules; see {self.node(name).kube_proxy.log}"
        if node["status"]["nodeInfo"]["bootID"] != self.node(name).boot_id:
            return "the kubelet has not reported since the node was started"
        taints = [taint["key"] for taint in node["spec"].get("taints", [])]
        return (
            f"tainted {', '.join(taints)}"
            if any("not-ready" in key or "unreachable" in key for key in taints)
            else ""
        )

    # Nodes.

    def node(self, name: str) -> Node:
        """One node that was added; ClusterError with the names that there are."""
        known = self._registered()
        if name not in known:
            raise ClusterError(
                "cluster", f"{self.name} has no node {name!r}; it has {', '.join(known) or 'none'}"
            )
        return Node(self.layout, self.authority, name, known[name]["index"], known[name]["disk"])

    def nodes(self) -> list[Node]:
        """All nodes, in the order they were added."""
        return [self.node(name) for name in self._registered()]

    def node_names(self) -> list[str]:
        """The names of all nodes, in the order they were added."""
        return list(self._registered())

    def add_node(self, name: str, *, disk: int = DEFAULT_DISK) -> Node:
        """Start one more node and wait until it is Ready."""
        with self._locked():
            self._register([name], disk)
            node = self.node(name)
            node.start()
            node.start_kube_proxy()
            self._route_pods()
            self.wait_ready([name])
            return node

    def remove_node(self, name: str) -> None:
        """Kill a node, delete its Node object and all that it had."""
        with self._locked():
            node = self.node(name)
            node.stop()
            self.kubectl("delete", "node", name, "--ignore-not-found")
            node.remove_files()
            known = self._registered()
            del known[name]
            self._write_registered(known)

    @property
    def _nodes_file(self) -> Path:
        return self.layout.folder / "cluster.json"

    def _registered(self) -> dict[str, dict[str, Any]]:
        try:
            nodes: dict[str, dict[str, Any]] = json.loads(self._nodes_file.read_text())["nodes"]
        except FileNotFoundError:
            return {}
        return nodes

    def _register(self, names: Sequence[str], disk: int) -> None:
        known = self._registered()
        for name in names:
            if not NODE_NAME.fullmatch(name):
                raise ClusterError("cluster", f"node name {name!r} must match {NODE_NAME.pattern}")
            if name not in known:
                index = next(
                    number for number in range(200) if number not in {one["index"] for one in known.values()}
                )
                known[name] = {"index": index, "ip": self.layout.node_ip(index), "disk": disk}
        self._write_registered(known)

    def _write_registered(self, nodes: dict[str, dict[str, Any]]) -> None:
        fresh = self._nodes_file.with_suffix(".new")
        fresh.write_text(json.dumps({"nodes": nodes}, indent=1))
        fresh.rename(self._nodes_file)

    def _route_pods(self) -> None:
        nodes = self.nodes()
        for node in nodes:
            network.route_pods(
                self.layout, node.sandbox.pid(), [one.index for one in nodes if one.index != node.index]
            )

    def reboot(self, name: str) -> None:
        """Reboot a node and wait until it is Ready again."""
        with self._locked():
            self.node(name).reboot()
            self._route_pods()
            self.wait_ready([name])

    # What tests use.

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    @property
    def registry_push_url(self) -> str:
        """On the host, past the proxy."""
        return self.registry.push_url

    @property
    def registry_name(self) -> str:
        """The registry in image references, as nodes use them."""
        return self.layout.registry_name

    @property
    def proxy(self) -> ProxyClient:
        return ProxyClient(f"http://127.0.0.1:{self.layout.proxy_port}")

    def kubectl(self, *arguments: str | Path, stdin: str = "", timeout: float = 120) -> str:
        """What kubectl prints, as the administrator."""
        argv = [binaries.path("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return run("kubectl", argv, stdin=stdin, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def helm(self, *arguments: str | Path, timeout: float = 300) -> str:
        """What helm prints, as the administrator."""
        return run(
            "helm", [binaries.path("helm"), f"--kubeconfig={self.kubeconfig}", *arguments], timeout=timeout
        )

    def restart_apiserver(self, *, kill: bool = True) -> None:
        """End the API server, start it, and wait until it is ready."""
        self.control_plane.apiserver.stop(kill=kill)
        self.control_plane.start_apiserver()
        self.control_plane.wait()

    def environment(self) -> dict[str, str]:
        """What a shell needs: KUBECONFIG, and the folder of kubectl and helm for PATH."""
        return {"KUBECONFIG": str(self.kubeconfig), "PATH": str(self.layout.bin)}

    def status(self) -> list[tuple[str, str]]:
        """One line per daemon: name, and its state."""
        lines = []
        for record in sorted(self.layout.records.glob("*.json")):
            sandbox, _, component = record.stem.partition(".")
            process = Sandbox(self.layout, sandbox).process(component)
            pid = process.pid()
            lines.append((process.name, f"runs as {pid}" if pid else f"has ended; see {process.log}"))
        return lines

    # Inside.

    def _link_binaries(self) -> None:
        self.layout.bin.mkdir(exist_ok=True)
        for component in binaries.COMPONENTS.values():
            for name in component.binaries:
                link = self.layout.bin / name
                link.unlink(missing_ok=True)
                link.symlink_to(binaries.path(name))

    def _loops(self) -> list[str]:
        lines = run("losetup", ["losetup", "-n", "-O", "BACK-FILE"]).splitlines()
        return [line for line in lines if line.startswith(f"{self.layout.folder}/")]

    @property
    def _lock_file(self) -> Path:
        return root() / f"{self.name}.lock"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One command of a cluster at a time.

        Children hold the lock too: an `up` that is killed has ended when its last child has.
        """
        with self._open_lock() as lock:
            inherit(lock.fileno())
            try:
                yield
            finally:
                disinherit(lock.fileno())

    def _open_lock(self) -> IO[str]:
        """The locked lock file. `down` deletes it: what we waited for may not be the file of this name any more."""
        root().mkdir(parents=True, exist_ok=True)
        while True:
            lock = self._lock_file.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another command on cluster {self.name}", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if self._lock_file.exists() and self._lock_file.samefile(f"/proc/self/fd/{lock.fileno()}"):
                return lock
            lock.close()


def _each(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], None]]) -> None:
    """Run all at once; the first failure is raised when all have ended."""
    futures = [pool.submit(job) for job in jobs]
    for future in futures:
        future.result()
