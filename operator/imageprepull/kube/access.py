"""How to reach one API server: address, trust and a token that rotates. Made once, read by every request."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class AccessError(Exception):
    """There is no usable way to the API server; the message says what is missing and what to set."""


def no_token() -> str | None:
    """Access without a bearer token: client certificates, or a server that asks for none."""
    return None


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """`server` is a URL; `token` is asked before every request, because service-account tokens rotate.

    `tls_server_name` replaces the host of `server` when the certificate is checked and in SNI.
    """

    server: str
    ssl: ssl.SSLContext | None = None
    token: Callable[[], str | None] = no_token
    tls_server_name: str | None = None

    @classmethod
    def in_cluster(
        cls, directory: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ
    ) -> ClusterAccess:
        """The way of a pod: the Service's address from the environment, token and CA from the mounted volume.

        Addresses, not names: an agent on the host network starts before the cluster's DNS.
        """
        host = environment.get("KUBERNETES_SERVICE_HOST")
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise AccessError(
                "KUBERNETES_SERVICE_HOST is not set: not running in a pod? Name the API server with --server"
            )
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return cls.from_files(f"https://{authority}", directory / "token", directory / "ca.crt")

    @classmethod
    def from_files(
        cls, server: str, token_file: Path | None = None, ca_file: Path | None = None
    ) -> ClusterAccess:
        """Explicit access, for running outside a pod. Without `ca_file` the system's CAs are trusted."""
        context: ssl.SSLContext | None = None
        if server.startswith("https://"):
            try:
                context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
            except (OSError, ssl.SSLError) as error:
                raise AccessError(f"cannot use the CA file {ca_file} for {server}: {error}") from error
        return cls(server.rstrip("/"), context, no_token if token_file is None else TokenFile(token_file))


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A projected token: the kubelet replaces the file before the token expires, so it is never kept."""

    path: Path

    def __call__(self) -> str:
        """The token as it is on disk now.

        Raises:
            AccessError: the file is missing or empty.
        """
        try:
            token = self.path.read_text().strip()
        except OSError as error:
            raise AccessError(f"cannot read the service-account token: {error}") from error
        if not token:
            raise AccessError(f"the service-account token {self.path} is empty")
        return token
