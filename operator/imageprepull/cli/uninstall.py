"""`imageprepull uninstall`: the chart's pre-delete hook. Unpins everywhere as far as it can, and ends in time with 0.

An uninstall must not hang or fail because of a node that is down: what could not be done is printed. Only a pod that
is told to stop before its time ends with another code, so that its Job starts the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from imageprepull.cli.operator import access_of, add_outside
from imageprepull.controller.uninstall import Outcome, Release, let_go_everywhere
from imageprepull.kube.access import ClusterAccess
from imageprepull.kube.client import ApiClient
from imageprepull.telemetry.logs import configure

REQUEST_SECONDS = 10.0
STOPPED = 143
"""As a process has it that SIGTERM ends."""
NAMED = 100
"""So many nodes are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags, with the defaults of a pod in the release namespace."""
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE", "imageprepull-system"))
    parser.add_argument(
        "--deployment", default="imageprepull-operator", help="the operator, which is stopped"
    )
    parser.add_argument("--lease-name", default="imageprepull-operator", help="the operator's Lease")
    parser.add_argument(
        "--job", default="", help="the Job that this is a pod of: the time counts from its start"
    )
    parser.add_argument(
        "--timeout", type=float, default=100.0, metavar="SECONDS", help="for all of it; then it ends anyway"
    )
    parser.add_argument("--poll", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--log-format", choices=("auto", "json", "console"), default="auto")
    add_outside(parser)


def run(arguments: argparse.Namespace) -> int:
    """0, whatever happened; STOPPED when told to stop."""
    configure({"json": False, "console": True}.get(arguments.log_format))
    release = Release(
        namespace=arguments.namespace,
        deployment=arguments.deployment,
        lease=arguments.lease_name,
        job=arguments.job,
        timeout=arguments.timeout,
        poll=arguments.poll,
    )
    try:
        outcome, stopped = asyncio.run(_uninstall(access_of(arguments), release))
        print(told(outcome), flush=True)
    except Exception as error:  # noqa: BLE001 - an uninstall goes on whatever is wrong here; it is said.
        print(f"imageprepull uninstall: nothing was unpinned: {error}", file=sys.stderr, flush=True)
        return 0
    return STOPPED if stopped else 0


async def _uninstall(access: ClusterAccess, release: Release) -> tuple[Outcome, bool]:
    """Ends early, with what is known by then, when told to stop; whether it was."""
    async with ApiClient(access, timeout=REQUEST_SECONDS, user_agent="imageprepull-uninstall") as api:
        outcome = Outcome()
        work = asyncio.create_task(let_go_everywhere(api, release, outcome))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()
        return outcome, work.cancelled()


def told(outcome: Outcome) -> str:
    """What the person who uninstalls should know."""
    lines = [f"unpinned on {len(outcome.let_go)} nodes"]
    lines += outcome.problems
    if outcome.left:
        named = " ".join(outcome.left[:NAMED])
        more = f" and {len(outcome.left) - NAMED} more" if len(outcome.left) > NAMED else ""
        lines.append(f"{len(outcome.left)} nodes did not answer, images may stay pinned there: {named}{more}")
    return "\n".join(lines)
