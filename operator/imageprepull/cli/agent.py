"""`imageprepull agent`: reads flags and environment, then runs agent/main.py. The chart passes everything here.

What unpacks layers is forked first, from a small process without threads: so nothing else is imported before `run`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprepull.cli.start import raise_file_limit, start_workers

if TYPE_CHECKING:
    from imageprepull.agent.settings import AgentSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; every delay is in seconds. One that is not given leaves the default of the settings."""
    parser.add_argument("--node-name", default=os.environ.get("NODE_NAME", ""), help="env NODE_NAME")
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE", ""), help="env POD_NAMESPACE")
    parser.add_argument("--address", default=None, help="containerd's socket")
    parser.add_argument(
        "--hosts-dir",
        default="",
        help="folders with hosts.toml files, separated by ':'; default: what the runtime reads",
    )
    parser.add_argument(
        "--spool-dir",
        type=Path,
        default=None,
        help="where blobs wait; on the runtime's file system",
    )
    parser.add_argument("--boot-id-file", type=Path, default=None)
    parser.add_argument("--health-host", default=None, help="default: all addresses")
    parser.add_argument("--health-port", type=int, default=None)
    parser.add_argument("--keep-blobs", choices=("after", "before", "never"), default="after")
    parser.add_argument("--sync", choices=("background", "before"), default="background")
    parser.add_argument(
        "--extraction",
        choices=("auto", "fast", "portable"),
        default="auto",
        help="unpack here while layers download, or let containerd do it; fast never falls back",
    )
    parser.add_argument("--report-interval", type=seconds, default=None)
    parser.add_argument("--heartbeat", type=seconds, default=None)
    parser.add_argument("--resync", type=seconds, default=None)
    parser.add_argument("--failed-retry-interval", type=seconds, default=None)
    parser.add_argument("--backoff-base", type=seconds, default=None)
    parser.add_argument(
        "--loss-backoff-base",
        type=seconds,
        default=None,
        help="before an image that vanished again within an hour is brought back; doubled each time up to 15 min",
    )
    parser.add_argument(
        "--kubelet-eviction-hard",
        default=None,
        metavar="EXPRESSIONS",
        help="the kubelet's evictionHard, as for its own flag; default: the kubelet's",
    )
    parser.add_argument(
        "--kubelet-image-gc-high", type=int, default=85, metavar="PERCENT", help="default: %(default)s"
    )
    parser.add_argument(
        "--operator-lease",
        default=None,
        metavar="NAME",
        help="the Lease of the operator's leader; nothing is deleted unless it is renewed",
    )
    parser.add_argument(
        "--operator-lease-poll", type=seconds, default=None, help="between two looks at that Lease"
    )
    parser.add_argument(
        "--order-retry-interval",
        type=seconds,
        default=None,
        help="between two questions whether a removal that waits for the operator is still ordered",
    )
    parser.add_argument(
        "--keep-unchosen",
        type=seconds,
        default=None,
        metavar="SECONDS",
        help="how long what unfinished pulls have fetched is kept when the node's NodePrepull is gone",
    )
    parser.add_argument("--disk-interval", type=seconds, default=None, help="between two looks at the disks")
    parser.add_argument("--log-format", choices=("auto", "json", "console"), default="auto")
    outside = parser.add_argument_group("outside a pod")
    outside.add_argument("--server", default="", help="URL of the API server; default: the pod's own cluster")
    outside.add_argument("--token-file", type=Path, default=None)
    outside.add_argument("--ca-file", type=Path, default=None)


def seconds(text: str) -> float:
    """A positive number of seconds."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def settings_of(args: argparse.Namespace) -> AgentSettings:
    """The settings that the flags ask for.

    Raises:
        AccessError: there is no way to the API server.
        ValueError: a required flag is missing; the message names it.
    """
    from imageprepull.agent.accounts import Delays  # noqa: PLC0415
    from imageprepull.agent.kubelet import DEFAULT, thresholds_of  # noqa: PLC0415
    from imageprepull.agent.losing import LossPace  # noqa: PLC0415
    from imageprepull.agent.pace import Pace  # noqa: PLC0415 - see above, here and below.
    from imageprepull.agent.settings import AgentSettings  # noqa: PLC0415
    from imageprepull.kube.access import ClusterAccess  # noqa: PLC0415

    for flag, value in (("--node-name", args.node_name), ("--namespace", args.namespace)):
        if not value:
            raise ValueError(f"{flag} is not set, and neither is its environment variable")
    access = (
        ClusterAccess.from_files(args.server, args.token_file, args.ca_file)
        if args.server
        else ClusterAccess.in_cluster()
    )
    return AgentSettings(
        access=access,
        node_name=args.node_name,
        namespace=args.namespace,
        hosts_dirs=tuple(Path(part) for part in args.hosts_dir.split(":") if part),
        health_host=args.health_host,
        keep_blobs=args.keep_blobs,
        sync=args.sync,
        extraction=args.extraction,
        thresholds=thresholds_of(
            DEFAULT if args.kubelet_eviction_hard is None else args.kubelet_eviction_hard,
            args.kubelet_image_gc_high,
        ),
        pace=Pace(**given(report_interval=args.report_interval, heartbeat=args.heartbeat)),
        delays=Delays(
            losses=LossPace(**given(base=args.loss_backoff_base)),
            **given(
                resync=args.resync,
                retry_base=args.backoff_base,
                retry_slow=args.failed_retry_interval,
                retry_order=args.order_retry_interval,
                unchosen=args.keep_unchosen,
            ),
        ),
        **given(
            address=args.address,
            spool_dir=args.spool_dir,
            boot_id_file=args.boot_id_file,
            health_port=args.health_port,
            disk_interval=args.disk_interval,
            operator_lease=args.operator_lease,
            lease_poll=args.operator_lease_poll,
        ),
    )


def given(**values: Any) -> dict[str, Any]:
    """The arguments that have a value."""
    return {name: value for name, value in values.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    """0 after an orderly end, 1 when a loop failed, 2 for unusable flags."""
    workers, why_not = start_workers() if args.extraction != "portable" else (None, "")
    raise_file_limit()
    # Here: unusable flags should say so before grpc is loaded.
    from imageprepull.kube.access import AccessError  # noqa: PLC0415
    from imageprepull.telemetry.logs import configure  # noqa: PLC0415

    configure({"auto": None, "json": False, "console": True}[args.log_format])
    try:
        settings = settings_of(args)
    except (AccessError, ValueError) as error:
        print(f"imageprepull agent: {error}", file=sys.stderr)
        return 2
    if why_not:
        print(f"imageprepull agent: no workers: {why_not}", file=sys.stderr)
    from imageprepull.agent.main import run as run_agent  # noqa: PLC0415

    asyncio.run(run_agent(settings, workers))
    return 0
