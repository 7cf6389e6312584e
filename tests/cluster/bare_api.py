"""A real etcd and kube-apiserver on loopback, and nothing else: for tests of the operator against the API alone."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from imageprepull.kube.access import AccessError, ClusterAccess
from tests.testbed.binaries import path

TOKEN = "bare-api-admin"
USER, USER_TOKEN = "bare-api-user", "bare-api-user-token"
"""Somebody who may do what RBAC says, and nothing at first."""
START_TIMEOUT = 90.0
LEASE_SECONDS = 30
"""An operator's, unless a test says otherwise: a busy machine may stand still for seconds."""


OUR_PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to connections: nobody's connection takes one before its server is there."""


def free_port() -> int:
    for port in random.sample(OUR_PORTS, len(OUR_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"every port of {OUR_PORTS} is taken")


def free_ports(count: int) -> list[int]:
    """As many different ones."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


class Child:
    """A process with its log; `stop` ends it with all that it started."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def ended(self) -> int | None:
        return self._process.poll()

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self._process.wait(timeout)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class BareApi:
    """One API server. Everybody with the token may do everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._etcd_port, self._peer_port = free_ports(3)
        self.children: list[Child] = []

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "pki" / "apiserver.crt"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def user_token_file(self) -> Path:
        return self.folder / "user-token"

    def access(self) -> ClusterAccess:
        return ClusterAccess.from_files(self.server, self.token_file, self.ca_file)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(TOKEN)
        self.user_token_file.write_text(USER_TOKEN)
        (self.folder / "tokens.csv").write_text(
            f"{TOKEN},admin,admin,system:masters\n{USER_TOKEN},{USER},{USER}\n"
        )
        key = self.folder / "service-accounts.key"
        openssl = shutil.which("openssl") or "openssl"
        subprocess.run([openssl, "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        try:
            self._serve()
        except AssertionError as error:
            if "address already in use" not in str(error):
                raise
            # Another run on this machine was quicker.
            self.stop()
            self.children.clear()
            shutil.rmtree(self.folder / "etcd", ignore_errors=True)
            self.port, self._etcd_port, self._peer_port = free_ports(3)
            self._serve()

    def _serve(self) -> None:
        key = self.folder / "service-accounts.key"
        etcd = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._child(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        )
        self._child(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            f"--cert-dir={self.folder / 'pki'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            # There is no controller that would make them.
            "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--profiling=false",
        )
        self._wait()

    def _child(self, name: str, *flags: str) -> None:
        self.children.append(Child([str(path(name)), *flags], self.folder / f"{name}.log"))

    def _wait(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            for child in self.children:
                assert child.ended() is None, f"{child.log.stem} ended:\n{child.tail()}"
            with contextlib.suppress(OSError, AccessError):
                context = self.access().ssl
                request = urllib.request.Request(
                    f"{self.server}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}
                )
                with urllib.request.urlopen(request, context=context, timeout=3) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.2)
        raise AssertionError(f"the API server is not ready:\n{self.children[-1].tail()}")

    def back_up(self) -> Path:
        """A cold copy of etcd's data; the servers are up again when it returns."""
        copy = self.folder / "backup"
        self._halt()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "etcd", copy)
        self._serve()
        return copy

    def restore(self, backup: Path) -> None:
        """Go on from a copy: resourceVersions go back as well, as after a real restore without a bump."""
        self._halt()
        shutil.rmtree(self.folder / "etcd")
        shutil.copytree(backup, self.folder / "etcd")
        self._serve()

    def _halt(self) -> None:
        """An orderly end of etcd, so that its files are complete; the API server has nothing of its own."""
        etcd, api_server = self.children
        api_server.stop(signal.SIGKILL)
        etcd.stop()
        self.children.clear()

    def stop(self) -> None:
        for child in reversed(self.children):
            child.stop(signal.SIGKILL)


class Operator(Child):
    """One operator process with short delays."""

    def __init__(self, api: BareApi, identity: str, *more: str) -> None:
        self.health_port = free_port()
        program = Path(sys.executable).with_name("imageprepull")
        flags = [
            "operator",
            f"--server={api.server}",
            f"--token-file={api.token_file}",
            f"--ca-file={api.ca_file}",
            "--namespace=default",
            f"--identity={identity}",
            "--health-host=127.0.0.1",
            f"--health-port={self.health_port}",
            f"--hosts-dir={api.folder / 'hosts'}",
            "--agent-selector=app=agent",
            "--log-format=json",
            "--status-interval=0.2",
            "--resync=20",
            "--confirm-interval=2",
            f"--lease-seconds={LEASE_SECONDS}",
            "--crd-timeout=20",
            "--agent-timeout=3",
            *more,
        ]
        super().__init__([str(program), *flags], api.folder / f"{identity}.log")

    def ask(self, question: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.health_port}{question}"
        try:
            with urllib.request.urlopen(url, timeout=3) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def running(child: Child) -> Iterator[Child]:
    try:
        yield child
    finally:
        child.stop()
