"""One containerd of its own for tests: real binary, own root, state and socket, on a file system of its own.

The file system is an ext4 in a sparse file on a loop device: overlayfs does not work on overlayfs, and a test may
fill or copy the disk. `cluster.py` has nodes with kubelets; this is for tests that need only the runtime.

Daemons die with the process that started them. Mounts do not, so `sweep` removes what a killed run left behind.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from imageprepull.runtime.protos import cri_pb2
from tests.testbed import binaries

PREFIX = "imageprepull-containerd-"
DEBIAN_CONTAINERD = Path("/usr/bin/containerd")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CRI_1 = 'plugins."io.containerd.grpc.v1.cri"'
CRI_IMAGES = 'plugins."io.containerd.cri.v1.images"'
CRI_RUNTIME = 'plugins."io.containerd.cri.v1.runtime"'


# The kernel's "when the parent dies" means the thread that forked, so daemons come from one that lives as long as we.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="daemon-spawner")


class DaemonFailedError(Exception):
    """A daemon did what it should not; the message ends with the tail of its log."""


def binary_of(version: str) -> Path:
    """The containerd of a series: Debian's for "1.6", the testbed's own build for "2.4"."""
    return DEBIAN_CONTAINERD if version == "1.6" else binaries.path("containerd")


def spawn(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon that writes to `log` and dies with us, even when we are killed; callable from any thread."""
    with log.open("ab") as output:
        return _spawner.submit(
            subprocess.Popen,
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            # Ctrl-C at the terminal is for us, not for it.
            start_new_session=True,
            env={"PATH": PATH, "HOME": "/root"},
        ).result()


@dataclass
class ContainerdDaemon:
    """A daemon of `version` ("1.6" or "2.4") in `folder`, which must be on a mount of its own (see `disk`)."""

    version: str
    folder: Path
    snapshotter: str = "overlayfs"
    cri: bool = True
    discard_unpacked_layers: bool = False
    share_content: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def root(self) -> Path:
        """Where blobs and snapshots are."""
        return self.folder / "root"

    @property
    def certs_d(self) -> Path:
        """The folder of hosts.toml files."""
        return self.folder / "certs.d"

    @property
    def log(self) -> Path:
        return self.folder / "containerd.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *, patience: float = 60.0) -> None:
        """Start it, anew or again on the same state, and wait until its CRI is ready."""
        for folder in (self.folder, self.certs_d, self.folder / "cni"):
            folder.mkdir(exist_ok=True)
        config = self.folder / "config.toml"
        config.write_text(self._config())
        # The socket of a killed daemon would look like one that is about to answer.
        self.socket.unlink(missing_ok=True)
        command: list[str | Path] = [binary_of(self.version), "--config", config, "--log-level", "info"]
        command += ["--address", self.socket, "--root", self.root, "--state", self.folder / "state"]
        self.process = spawn(command, self.log)
        self._wait(patience)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait until it is gone; one that does not go is killed."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop answering without losing connections."""
        process = self._process()
        process.send_signal(signal.SIGSTOP)
        # Threads stop one after the other; this returns when all have.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Go on answering."""
        self._process().send_signal(signal.SIGCONT)

    def log_tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def named(self, pattern: str) -> list[Path]:
        """What in the daemon's folder bears such a name. It may collect meanwhile: what goes under the walk is not there."""
        return [
            Path(root, name)
            for root, folders, files in os.walk(self.folder)
            for name in fnmatch.filter([*folders, *files], pattern)
        ]

    def trust(self, registry: str) -> None:
        """Let the daemon's own pulls use plain http for `registry` (host:port)."""
        folder = self.certs_d / registry
        folder.mkdir(parents=True, exist_ok=True)
        url = f"http://{registry}"
        hosts = f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(hosts)

    def _process(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise DaemonFailedError(f"containerd {self.version} was not started")
        return self.process

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        if number is signal.SIGTERM:
            # A frozen one would not hear of it.
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        with grpc.insecure_channel(
            f"unix:{self.socket}",
            options=[("grpc.max_reconnect_backoff_ms", 100), ("grpc.default_authority", "localhost")],
        ) as channel:
            # Without the CRI the call is refused as unknown, which says as well that the daemon answers.
            status = channel.unary_unary(
                "/runtime.v1.RuntimeService/Status",
                request_serializer=cri_pb2.StatusRequest.SerializeToString,
                response_deserializer=cri_pb2.StatusResponse.FromString,
            )
            while time.monotonic() < deadline:
                if self._process().poll() is not None:
                    raise DaemonFailedError(f"containerd {self.version} ended at start:\n{self.log_tail()}")
                try:
                    status(cri_pb2.StatusRequest(), timeout=2)
                except grpc.RpcError as error:
                    if not self.cri and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        return
                    last = error.details()
                    # The wait between two looks at a process that tells nobody when it is ready.
                    time.sleep(0.02)
                else:
                    return
        raise DaemonFailedError(f"containerd {self.version} is not ready: {last}\n{self.log_tail()}")

    def _config(self) -> str:
        """Configuration version 2 for 1.6, 3 for 2.x (which calls its CRI parts differently)."""
        old = self.version == "1.6"
        discard = str(self.discard_unpacked_layers).lower()
        disabled = [] if old else ["io.containerd.nri.v1.nri"]
        if not self.cri:
            disabled += ["io.containerd.grpc.v1.cri"]
            disabled += [] if old else ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
        runtime = CRI_1 if old else CRI_RUNTIME
        images = f"{CRI_1}.containerd" if old else CRI_IMAGES
        cni_bin = "bin_dir" if old else "bin_dirs"
        cni_path = '"/usr/lib/cni"' if old else '["/usr/lib/cni"]'
        return f"""\
version = {2 if old else 3}
disabled_plugins = {disabled!r}
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "{"shared" if self.share_content else "isolated"}"
[{runtime}]
  disable_apparmor = true
  restrict_oom_score_adj = true
[{runtime}.cni]
  {cni_bin} = {cni_path}
  conf_dir = "{self.folder}/cni"
[{images}]
  snapshotter = "{self.snapshotter}"
  discard_unpacked_layers = {discard}
[{CRI_1 if old else CRI_IMAGES}.registry]
  config_path = "{self.certs_d}"
"""


@contextlib.contextmanager
def disk(gib: int = 8) -> Iterator[Path]:
    """A folder on an ext4 of its own, of `gib` GiB at most (sparse), gone afterwards whatever happened."""
    sweep()
    # Named after its owner, so that `sweep` can tell what was left behind.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    # As on a node, where it is the socket that refuses a user and not a folder above it.
    folder.chmod(0o755)
    mountpoint, image = folder / "fs", folder / "disk"
    try:
        mountpoint.mkdir()
        with image.open("wb") as file:
            file.truncate(gib << 30)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", str(image))
        run("mount", "-o", "loop", str(image), str(mountpoint))
        yield mountpoint
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Unmount whatever is mounted below `folder`, deepest first, and delete it."""
    for mountpoint in sorted(mounts_below(folder), reverse=True):
        run("umount", "--lazy" if mountpoint.name != "fs" else "--verbose", str(mountpoint))
    shutil.rmtree(folder)


def mounts_below(folder: Path) -> list[Path]:
    """The mount points at and below `folder`."""
    points = [Path(line.split(" ")[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.is_relative_to(folder)]


def sweep() -> None:
    """Remove what runs left behind whose process is gone. Where a child of theirs still lives, a later run does."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            # Another run may be sweeping too.
            with contextlib.suppress(DaemonFailedError, FileNotFoundError):
                remove(folder)


def run(*command: str) -> None:
    """Run a command of the system; its complaint is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise DaemonFailedError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def containerd_daemon(version: str, **options: object) -> Iterator[ContainerdDaemon]:
    """A running daemon on a disk of its own; `options` are fields of `ContainerdDaemon`."""
    with disk() as folder:
        daemon = ContainerdDaemon(version, folder, **options)  # type: ignore[arg-type]
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()


@dataclass
class DockerRegistry:
    """Debian's docker-registry on a free loopback port, storing below `folder`."""

    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    port: int = 0

    @property
    def host(self) -> str:
        """What an image reference starts with."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def log(self) -> Path:
        return self.folder / "registry.log"

    def start(self, patience: float = 60.0) -> None:
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port = probe.getsockname()[1]
        config = self.folder / "registry.yml"
        storage = f"{{filesystem: {{rootdirectory: {self.folder}/registry}}, delete: {{enabled: true}}}}"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nstorage: {storage}\nhttp: {{addr: '{self.host}'}}\n"
        )
        self.process = spawn(["/usr/bin/docker-registry", "serve", config], self.log)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)  # it tells nobody when it listens
        raise DaemonFailedError(f"docker-registry is not ready:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextlib.contextmanager
def docker_registry() -> Iterator[DockerRegistry]:
    """A running registry that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="imageprepull-registry-") as folder:
        registry = DockerRegistry(Path(folder))
        try:
            registry.start()
            yield registry
        finally:
            registry.stop()
