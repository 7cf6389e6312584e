"""etcd, API server, controller manager and scheduler: real ones, with certificates, RBAC and the node authorizer.

They run in one PID namespace on the host's network and listen on the bridge's address.
"""

import json
import ssl
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path

from tests.testbed.binaries import path
from tests.testbed.certificates import Authority
from tests.testbed.commands import wait_until
from tests.testbed.layout import SERVICES, Layout
from tests.testbed.processes import Process
from tests.testbed.sandbox import Sandbox

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["ResponseComplete"],
    "rules": [{"level": "Metadata"}],
}
START_TIMEOUT = 90.0
"""Seconds; a busy machine with cold caches needs half a minute."""


class ControlPlane:
    """Of one cluster; `start` starts what does not run, `wait` waits until all of it answers."""

    def __init__(self, layout: Layout, authority: Authority, sandbox: Sandbox) -> None:
        self.layout = layout
        self.authority = authority
        self.sandbox = sandbox

    @cached_property
    def etcd(self) -> Process:
        return self.sandbox.process("etcd")

    @cached_property
    def apiserver(self) -> Process:
        return self.sandbox.process("kube-apiserver")

    def start(self) -> None:
        """Start all that does not run. The API server waits for etcd, the others for the API server."""
        self.start_etcd()
        self.start_apiserver()
        self._start_client(
            "kube-controller-manager", "system:kube-controller-manager", self._controller_flags()
        )
        self._start_client("kube-scheduler", "system:kube-scheduler", [])

    def start_etcd(self) -> None:
        """Its files are not synced to disk: a killed process loses nothing by that."""
        pki = self.authority.folder
        url, peer = f"https://{self.layout.host_ip}:2379", f"http://127.0.0.1:{self.layout.registry_port + 5}"
        flags = [
            f"--data-dir={self.layout.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--client-cert-auth",
            f"--trusted-ca-file={self.authority.certificate}",
            f"--cert-file={pki / 'etcd.crt'}",
            f"--key-file={pki / 'etcd.key'}",
            "--log-level=warn",
        ]
        self.etcd.start([path("etcd"), *flags], join=self.sandbox.pid())

    def start_apiserver(self, audit: Path | None = None) -> None:
        """`audit`: a file for a line of JSON on each request, if a test wants to know who asked what."""
        pki = self.authority.folder
        flags = [
            f"--advertise-address={self.layout.host_ip}",
            f"--bind-address={self.layout.host_ip}",
            "--secure-port=6443",
            f"--etcd-servers=https://{self.layout.host_ip}:2379",
            f"--etcd-cafile={self.authority.certificate}",
            f"--etcd-certfile={pki / 'apiserver.crt'}",
            f"--etcd-keyfile={pki / 'apiserver.key'}",
            f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # Services exist on the nodes only: webhooks are called at their pods' addresses.
            "--enable-aggregator-routing=true",
            "--default-not-ready-toleration-seconds=30",
            "--default-unreachable-toleration-seconds=30",
            "--profiling=false",
        ]
        if audit is not None:
            policy = self.layout.folder / "audit-policy.json"
            policy.write_text(json.dumps(AUDIT_POLICY))
            flags += [f"--audit-policy-file={policy}", f"--audit-log-path={audit}"]
        self.apiserver.start([path("kube-apiserver"), *flags], join=self.sandbox.pid())

    def _controller_flags(self) -> list[str]:
        return [
            f"--root-ca-file={self.authority.certificate}",
            f"--service-account-private-key-file={self.authority.folder / 'service-accounts.key'}",
            "--use-service-account-credentials=true",
            # The kubelets renew their leases every 5 s (a quarter of nodeLeaseDurationSeconds).
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
            "--secure-port=0",
        ]

    def _start_client(self, name: str, user: str, flags: list[str]) -> None:
        config = self._kubeconfig(name, user)
        common = [f"--kubeconfig={config}", "--leader-elect=false", "--profiling=false"]
        if name == "kube-scheduler":
            common.append("--secure-port=0")
        self.sandbox.process(name).start([path(name), *common, *flags], join=self.sandbox.pid())

    def _kubeconfig(self, name: str, user: str) -> Path:
        return self.authority.kubeconfig(self.layout.folder / f"{name}.kubeconfig", user)

    def wait(self) -> None:
        """Until the API server is ready; names the component that ended instead."""
        names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        processes = [self.sandbox.process(name) for name in names]

        def ready() -> bool:
            for process in processes:
                process.check_alive()
            return self.ready()

        wait_until(self.apiserver.name, "is ready", ready, timeout=START_TIMEOUT, log=self.apiserver.log)

    def ready(self) -> bool:
        """What /readyz says; False while nothing answers."""
        pki = self.authority.folder
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(pki / "apiserver-kubelet.crt", pki / "apiserver-kubelet.key")
        try:
            with urllib.request.urlopen(f"{self.layout.server}/readyz", context=context, timeout=3) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
