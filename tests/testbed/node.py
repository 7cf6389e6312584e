"""One node: its disk, namespaces and cable, and containerd, kubelet and kube-proxy inside them.

Tests hold a `Node` to look into it (`exec`, `crictl`) and to hurt it (`restart_containerd`, `stop_kubelet`,
`freeze`, `reboot`).
"""

import json
import os
import shutil
import subprocess
import urllib.request
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tests.testbed import cgroups, network, node_config
from tests.testbed.binaries import path
from tests.testbed.certificates import Authority
from tests.testbed.commands import inherited, run, wait_until, write_if_changed
from tests.testbed.errors import ClusterError
from tests.testbed.layout import Layout
from tests.testbed.pause_image import archive
from tests.testbed.processes import PATH, Process
from tests.testbed.sandbox import Sandbox

OLD_CONTAINERD = Path("/usr/bin/containerd")
MOUNTS = (
    "/",
    "/run",
    "/proc",
    "/sys",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/etc/containerd",
    "/etc/cni/net.d",
)
DEFAULT_DISK = 24 << 30
NODE_INIT = Path(__file__).with_name("node_init.sh")


class Node:
    """Node `name` of a cluster; `index` decides its addresses, its zone and its containerd (0: Debian's 1.6)."""

    def __init__(self, layout: Layout, authority: Authority, name: str, index: int, disk: int) -> None:
        self.layout = layout
        self.authority = authority
        self.name = name
        self.index = index
        self.disk = disk
        self.folder = layout.node_folder(name)
        self.ip = layout.node_ip(index)
        self.socket = node_config.SOCKET
        """containerd's socket, as processes in the node see it."""

    @cached_property
    def sandbox(self) -> Sandbox:
        return Sandbox(self.layout, self.name, ("mnt", "net", "uts"))

    @property
    def zone(self) -> str:
        return node_config.ZONES[self.index % len(node_config.ZONES)]

    @property
    def old(self) -> bool:
        """Whether this node runs containerd 1.6."""
        return self.index == 0

    @property
    def containerd(self) -> Process:
        folder = "/usr/bin" if self.old else str(path("containerd").parent)
        return self.sandbox.process("containerd", {"PATH": f"{folder}:{PATH}"})

    @property
    def kubelet(self) -> Process:
        return self.sandbox.process("kubelet")

    @property
    def kube_proxy(self) -> Process:
        return self.sandbox.process("kube-proxy")

    # Starting, repairing.

    def start(self) -> None:
        """Bring everything up that is not; what is half there is repaired or made anew."""
        self._write_files()
        if self.sandbox.init.alive and (lacking := self._lacking_mounts()):
            print(
                f"{self.name}: mounts are missing ({', '.join(lacking)}): starting the node anew", flush=True
            )
            self.stop()
        if not self.sandbox.init.alive:
            self.stop()
            self.sandbox.start([NODE_INIT, self.name, self.folder, path("pause")])
        network.connect(self.layout, self.index, self.sandbox.pid())
        self.start_containerd()
        self.start_kubelet()

    def stop(self) -> None:
        """Kill everything of the node and wait until its disk is free."""
        self.sandbox.stop()
        network.disconnect(self.layout, self.index)
        wait_until(self.name, "its disk is unmounted", lambda: not self.loop_devices(), timeout=30)
        # No boot finds cgroups of the boot before; a kubelet that does spends seconds on each.
        cgroups.remove(self.sandbox.cgroup, self.name)

    def remove_files(self) -> None:
        """For good: disk and configuration of a stopped node."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def loop_devices(self) -> list[str]:
        """The loop devices on this node's disk file: one while it runs."""
        return run(self.name, ["losetup", "-n", "-O", "NAME", "-j", self.folder / "disk.img"]).split()

    def start_containerd(self) -> None:
        """Start it unless it runs, wait until it answers, and see to the sandbox image."""
        program = OLD_CONTAINERD if self.old else path("containerd")
        self.containerd.start([program, "--config", "/etc/containerd/config.toml"], join=self.sandbox.pid())

        def answers() -> bool:
            self.containerd.check_alive()
            # The CRI is ready some time after the daemon.
            return (
                self._ctr("version").returncode == 0
                and self.exec([path("crictl"), "info"], check=False).returncode == 0
            )

        wait_until(self.containerd.name, "answers", answers, timeout=60, log=self.containerd.log)
        self._ensure_pause_image()

    def start_kubelet(self) -> None:
        """Start it unless it runs."""
        labels = {
            "topology.kubernetes.io/zone": self.zone,
            "topology.kubernetes.io/region": "testbed",
        }
        flags = [
            f"--config={node_config.INSIDE / 'kubelet.json'}",
            f"--kubeconfig={node_config.INSIDE / 'kubelet.kubeconfig'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.ip}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        ]
        self.kubelet.start([path("kubelet"), *flags], join=self.sandbox.pid())

    def start_kube_proxy(self) -> None:
        """Start it unless it runs. It ends when no API server answers, so this comes after that."""
        config = node_config.INSIDE / "kube-proxy.json"
        self.kube_proxy.start([path("kube-proxy"), f"--config={config}"], join=self.sandbox.pid())

    def _ctr(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        program = "/usr/bin/ctr" if self.old else str(path("ctr"))
        return subprocess.run(
            self.enter([program, "-n", "k8s.io", *arguments]),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
            pass_fds=inherited(),
        )

    def _ensure_pause_image(self) -> None:
        image = node_config.PAUSE_IMAGE
        if image in self._ctr("images", "list", "-q").stdout.decode().split():
            return
        for arguments, data in (
            (
                ("images", "import", "--local", "-") if not self.old else ("images", "import", "-"),
                archive(path("pause").read_bytes()),
            ),
            (("images", "label", image, "io.cri-containerd.pinned=pinned"), b""),
        ):
            done = self._ctr(*arguments, stdin=data)
            if done.returncode:
                raise ClusterError(
                    self.name, f"ctr {' '.join(arguments)}: {done.stderr.decode()}", self.containerd.log
                )

    def _lacking_mounts(self) -> list[str]:
        lines = Path(f"/proc/{self.sandbox.pid()}/mountinfo").read_text().splitlines()
        present = {line.split()[4] for line in lines}
        return [mount for mount in MOUNTS if mount not in present]

    def _write_files(self) -> None:
        etc = self.folder / "etc"
        certs = etc / "containerd" / "certs.d" / self.layout.registry_name
        for folder in (etc / "node", etc / "cni", certs):
            folder.mkdir(parents=True, exist_ok=True)
        image = self.folder / "disk.img"
        if not image.exists():
            fresh = self.folder / ".disk.img"
            fresh.unlink(missing_ok=True)
            with fresh.open("wb") as sparse:
                sparse.truncate(self.disk)
            run(self.name, ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", fresh])
            fresh.rename(image)
        if not (self.folder / "boot-id").exists():
            self._new_boot_id()
        containerd = node_config.containerd_16 if self.old else node_config.containerd_2
        resolver = Path("/etc/resolv.conf")
        node = etc / "node"
        for file, text in (
            (etc / "containerd" / "config.toml", containerd(restrict_oom=not _may_raise_oom_score())),
            (certs / "hosts.toml", node_config.hosts_toml(self.layout.registry_name)),
            (etc / "cni" / "10-pods.conflist", node_config.cni(self.layout, self.index)),
            (etc / "crictl.yaml", node_config.crictl()),
            (node / "kubelet.json", node_config.kubelet(self.layout, self.name, self.ip)),
            (node / "kube-proxy.json", node_config.kube_proxy(self.layout, self.name)),
            (node / "resolv.conf", resolver.read_text() if resolver.exists() else ""),
        ):
            write_if_changed(file, text)
        self._write_credentials(node)

    def _write_credentials(self, folder: Path) -> None:
        user = f"system:node:{self.name}"
        names = [f"IP:{self.ip}", f"DNS:{self.name}"]
        certificate, key = self.authority.issue(f"kubelet-{self.name}", user, "system:nodes", names)
        write_if_changed(folder / "ca.crt", self.authority.certificate.read_text())
        write_if_changed(folder / "kubelet.crt", certificate.read_text())
        write_if_changed(folder / "kubelet.key", key.read_text())
        self.authority.kubeconfig(folder / "kubelet.kubeconfig", user, "system:nodes", f"kubelet-{self.name}")
        self.authority.kubeconfig(folder / "kube-proxy.kubeconfig", "system:kube-proxy")

    def _new_boot_id(self) -> None:
        # In place: the file is bind-mounted, and a mount holds on to the inode.
        (self.folder / "boot-id").write_text(f"{uuid.uuid4()}\n")

    def services_work(self) -> bool:
        """Whether kube-proxy has written its rules, as it says itself."""
        try:
            with urllib.request.urlopen(f"http://{self.ip}:10256/healthz", timeout=3) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    # What tests do to it.

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs `argv` in the node's namespaces, for those who start it themselves."""
        return ["nsenter", "-t", str(self.sandbox.pid()), "-m", "-n", "-p", "-u", "--", *map(str, argv)]

    def exec(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespaces; ClusterError when it fails, unless `check` is False."""
        done = subprocess.run(
            self.enter(argv), input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            raise ClusterError(
                self.name, f"`{' '.join(map(str, argv))}`: {done.stderr.strip() or done.returncode}"
            )
        return done

    def crictl(self, *arguments: str, timeout: float = 120) -> str:
        """What crictl prints."""
        return self.exec([path("crictl"), *arguments], timeout=timeout).stdout

    def images(self) -> list[dict[str, object]]:
        """What CRI lists: id, repoTags, repoDigests, size, pinned."""
        images: list[dict[str, object]] = json.loads(self.crictl("images", "-o", "json"))["images"]
        return images

    def ctr(self, *arguments: str) -> str:
        """What ctr prints, in the namespace k8s.io."""
        done = self._ctr(*arguments)
        if done.returncode:
            raise ClusterError(self.name, f"ctr {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    @property
    def root(self) -> Path:
        """The node's file system as the host can walk it."""
        return Path(f"/proc/{self.sandbox.pid()}/root")

    @property
    def boot_id(self) -> str:
        return (self.folder / "boot-id").read_text().strip()

    def stop_containerd(self, *, kill: bool = False) -> None:
        """End the daemon; containers go on."""
        self.containerd.stop(kill=kill)

    def restart_containerd(self, *, kill: bool = True) -> None:
        """End the daemon (as a crash would, if `kill`) and start it; containers go on."""
        self.stop_containerd(kill=kill)
        self.start_containerd()

    def stop_kubelet(self, *, kill: bool = False) -> None:
        """End the kubelet; the node turns NotReady after a while."""
        self.kubelet.stop(kill=kill)

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop every process of the node, containers too, or let them go on."""
        cgroups.freeze(self.sandbox.cgroup, frozen)

    def reboot(self) -> None:
        """Kill everything at once, then start with another boot ID; what was on disk is there, /run is empty."""
        self.stop()
        self._new_boot_id()
        self.start()
        self.start_kube_proxy()


def _may_raise_oom_score() -> bool:
    """CAP_SYS_RESOURCE: without it nobody can make a process less likely to be killed than its parent."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    return os.geteuid() == 0 and bool(effective & 1 << 24)
