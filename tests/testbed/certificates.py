"""Keys, certificates and kubeconfigs, by the openssl command: one authority per cluster signs all of them."""

import base64
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.testbed.commands import run, write_if_changed
from tests.testbed.layout import API_SERVICE, Layout

DAYS = "3650"
API_NAMES = (
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    "DNS:localhost",
    f"IP:{API_SERVICE}",
    "IP:127.0.0.1",
)


class Authority:
    """The cluster's certificate authority and the files it has signed, below `layout.pki`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.folder = layout.pki
        self.certificate = self.folder / "ca.crt"
        self._issuing = threading.Lock()

    def ensure(self) -> None:
        """Make the authority, the signing key of service accounts and the control plane's certificates."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self.certificate.exists():
            key = self._key("ca")
            out = self.folder / ".ca.crt"
            subject = f"/CN=imageprepull testbed {self.layout.name}"
            run(
                "certificates",
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-new",
                    "-days",
                    DAYS,
                    "-key",
                    key,
                    "-subj",
                    subject,
                    "-out",
                    out,
                ],
            )
            out.rename(self.certificate)
        self._key("service-accounts")
        address = f"IP:{self.layout.host_ip}"
        self.issue("apiserver", "kube-apiserver", names=(*API_NAMES, address))
        self.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters")
        self.issue("etcd", "etcd", names=(address, "IP:127.0.0.1"))

    def issue(self, name: str, user: str, group: str = "", names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key `name`, for client and server use; made once, whichever node asks first."""
        with self._issuing:
            return self._issue(name, user, group, names)

    def _issue(self, name: str, user: str, group: str, names: Sequence[str]) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        if certificate.exists():
            return certificate, key
        self._key(name)
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        request = run("certificates", ["openssl", "req", "-new", "-key", key, "-subj", subject])
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            "keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n"
            + (f"subjectAltName={','.join(names)}\n" if names else "")
        )
        out = self.folder / f".{name}.crt"
        authority: list[str | Path] = ["-CA", self.certificate, "-CAkey", self.folder / "ca.key"]
        run(
            "certificates",
            ["openssl", "x509", "-req", "-days", DAYS, *authority, "-extfile", extensions, "-out", out],
            stdin=request,
        )
        out.rename(certificate)
        return certificate, key

    def kubeconfig(self, file: Path, user: str, group: str = "", certificate: str = "") -> Path:
        """A kubeconfig for one user, with the certificate of this name, by default the file's."""
        signed, key = self.issue(certificate or file.stem, user, group)
        name = f"imageprepull-{self.layout.name}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": self.layout.server,
                        "certificate-authority-data": _inline(self.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {"client-certificate-data": _inline(signed), "client-key-data": _inline(key)},
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        }
        write_if_changed(file, json.dumps(config, indent=1))
        return file

    def _key(self, name: str) -> Path:
        key = self.folder / f"{name}.key"
        if not key.exists():
            out = self.folder / f".{name}.key"
            run(
                "certificates",
                ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", out],
            )
            out.rename(key)
        return key


def _inline(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
