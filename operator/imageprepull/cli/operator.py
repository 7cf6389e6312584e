"""`imageprepull operator`: flags into OperatorSettings, exit codes out of what ends it."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path

from imageprepull.cli import kubeconfig
from imageprepull.controller.handlers import KopfEnded
from imageprepull.controller.lease import LOST_EXIT_CODE, LeaseLost
from imageprepull.controller.main import run as run_operator
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.trust import CrdsMissing
from imageprepull.kube.access import AccessError, ClusterAccess
from imageprepull.telemetry.logs import configure

DEFAULT = OperatorSettings(access=ClusterAccess(""), identity="")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags, with the defaults of a pod."""
    pod_namespace = os.environ.get("POD_NAMESPACE", DEFAULT.namespace)
    identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"
    parser.add_argument(
        "--namespace", default=pod_namespace, help="namespace of the Lease and the pace ConfigMap"
    )
    parser.add_argument("--lease-name", default=DEFAULT.lease_name, help="name of the Lease")
    parser.add_argument("--identity", default=identity, help="this replica's name in the Lease")
    parser.add_argument(
        "--health-host", default="", help="address of /livez, /readyz and /metrics (default: all)"
    )
    parser.add_argument("--health-port", type=int, default=DEFAULT.health_port, help="their port")
    parser.add_argument(
        "--hosts-dir",
        default="",
        metavar="DIR[:DIR]",
        help="folders with <registry>/hosts.toml (default: containerd's)",
    )
    parser.add_argument(
        "--agent-namespace", default=None, help="namespace of the agents' pods (default: --namespace)"
    )
    parser.add_argument("--agent-selector", default=DEFAULT.agent_selector, help="labels of the agents' pods")
    parser.add_argument("--log-format", choices=("auto", "json", "console"), default="auto")
    for flag, default, meaning in (
        ("--status-interval", DEFAULT.status_interval, "between two writes of one object's status"),
        ("--resync", DEFAULT.resync, "between two complete lists"),
        (
            "--confirm-interval",
            DEFAULT.confirm_interval,
            "between the two reads that confirm an unseen deletion",
        ),
        ("--lease-seconds", DEFAULT.lease_seconds, "after which a silent leader is replaced"),
        ("--crd-timeout", DEFAULT.crd_timeout, "to wait for the CRDs"),
        ("--agent-timeout", DEFAULT.agent_timeout, "after which a missing agent is shown"),
        ("--event-interval", DEFAULT.event_interval, "between two Events of one reason on one object"),
    ):
        parser.add_argument(flag, type=float, default=default, metavar="SECONDS", help=f"seconds {meaning}")
    add_outside(parser)


def add_outside(parser: argparse.ArgumentParser) -> None:
    """The flags that `access_of` reads."""
    outside = parser.add_argument_group("outside a pod")
    outside.add_argument("--server", help="URL of the API server")
    outside.add_argument("--token-file", type=Path, help="bearer token for --server")
    outside.add_argument("--ca-file", type=Path, help="CA of --server")
    outside.add_argument("--kubeconfig", help="use a kubeconfig instead")
    outside.add_argument("--context", help="context of the kubeconfig")


def access_of(arguments: argparse.Namespace) -> ClusterAccess:
    """The API server that the flags name, else the pod's own."""
    if arguments.server:
        return ClusterAccess.from_files(arguments.server, arguments.token_file, arguments.ca_file)
    if arguments.kubeconfig or arguments.context:
        return kubeconfig.target(arguments).access
    return ClusterAccess.in_cluster()


def settings_of(arguments: argparse.Namespace) -> OperatorSettings:
    """The operator's settings from its flags."""
    return OperatorSettings(
        access=access_of(arguments),
        namespace=arguments.namespace,
        lease_name=arguments.lease_name,
        identity=arguments.identity,
        health_host=arguments.health_host,
        health_port=arguments.health_port,
        hosts_dirs=tuple(Path(folder) for folder in arguments.hosts_dir.split(":") if folder),
        agent_namespace=arguments.agent_namespace or arguments.namespace,
        agent_selector=arguments.agent_selector,
        status_interval=arguments.status_interval,
        resync=arguments.resync,
        confirm_interval=arguments.confirm_interval,
        lease_seconds=arguments.lease_seconds,
        crd_timeout=arguments.crd_timeout,
        agent_timeout=arguments.agent_timeout,
        event_interval=arguments.event_interval,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the operator; 0 when told to stop, 1 for a fault that a restart may cure, 70 when the lease was lost."""
    configure({"json": False, "console": True}.get(arguments.log_format))
    try:
        asyncio.run(run_operator(settings_of(arguments)))
    except (AccessError, CrdsMissing, KopfEnded) as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        print(f"imageprepull operator: {error}{cause}", file=sys.stderr)
        return 1
    except LeaseLost as error:
        print(f"imageprepull operator: {error}", file=sys.stderr)
        return LOST_EXIT_CODE
    return 0
