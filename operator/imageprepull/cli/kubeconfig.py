"""From a kubeconfig to the API client's ClusterAccess, by the loader of the official client (exec plug-ins, merging)."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imageprepull.kube.access import AccessError, ClusterAccess


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster and namespace the user means."""

    access: ClusterAccess
    namespace: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that kubectl users know."""
    parser.add_argument("-n", "--namespace", help="namespace of the object (default: the context's)")
    parser.add_argument("--kubeconfig", help="path of the kubeconfig (default: $KUBECONFIG, ~/.kube/config)")
    parser.add_argument("--context", help="context of the kubeconfig")


def target(arguments: argparse.Namespace) -> Target:
    """Load the kubeconfig that the flags name.

    Raises:
        AccessError: no such file or context, or one that can't be used; the message says which.
    """
    # Both imports cost a quarter of a second together: only who needs a cluster pays.
    from kubernetes.client import Configuration  # noqa: PLC0415
    from kubernetes.config import config_exception, kube_config  # noqa: PLC0415

    configuration = Configuration()
    try:
        kube_config.load_kube_config(
            arguments.kubeconfig, context=arguments.context, client_configuration=configuration
        )
        contexts, active = kube_config.list_kube_config_contexts(arguments.kubeconfig)
    except (config_exception.ConfigException, OSError) as error:
        raise AccessError(f"cannot load the kubeconfig: {error}") from error
    # The loader has made sure that a context that was asked for exists.
    chosen = next((context for context in contexts if context["name"] == arguments.context), active)
    namespace = (chosen or {}).get("context", {}).get("namespace", "default")
    return Target(access_of(configuration), arguments.namespace or namespace)


def access_of(configuration: Any) -> ClusterAccess:
    """What the loader found, as the API client needs it."""
    server = configuration.host.rstrip("/")
    context: ssl.SSLContext | None = None
    if server.startswith("https://"):
        try:
            context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
            if configuration.cert_file:
                context.load_cert_chain(configuration.cert_file, configuration.key_file)
        except OSError as error:  # ssl.SSLError is one
            raise AccessError(f"cannot use the certificates of the kubeconfig: {error}") from error
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return ClusterAccess(
        server, context, token_source(configuration), getattr(configuration, "tls_server_name", None) or None
    )


def token_source(configuration: Any) -> Callable[[], str | None]:
    """The bearer token of the moment: the loader's hook renews one that an exec plug-in gave.

    Versions of the official client keep it under either name.
    """

    def token() -> str | None:
        header = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return header.removeprefix("Bearer ") if header else None

    return token
