"""The command line: `python -m tests.testbed up|down|status|env|packages|build|add-node|remove-node|exec|proxy`."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable

from tests.testbed import packages
from tests.testbed.build import build
from tests.testbed.cluster import NODES, Cluster
from tests.testbed.errors import ClusterError
from tests.testbed.leftovers import leftovers
from tests.testbed.node import DEFAULT_DISK

GIB = 1 << 30


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    main = argparse.ArgumentParser(prog="python -m tests.testbed", description="A real throw-away cluster.")
    main.add_argument("--name", default=os.environ.get("IMAGEPREPULL_CLUSTER", "demo"), help="of the cluster")
    commands = main.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or repair it")
    up.add_argument("--nodes", default=",".join(NODES), help="names, by commas")
    up.add_argument("--disk", type=float, default=DEFAULT_DISK / GIB, help="GiB per node, sparse")
    commands.add_parser("down", help="remove it without a trace")
    commands.add_parser("status", help="what runs, and the nodes")
    commands.add_parser("env", help='print shell settings: eval "$(python -m tests.testbed env)"')
    commands.add_parser("packages", help="install the Debian packages that are missing")
    build_parser = commands.add_parser("build", help="build the binaries that the cache lacks")
    build_parser.add_argument("component", nargs="*")
    for name, text in (
        ("add-node", "start one more node"),
        ("remove-node", "remove a node"),
        ("reboot", "reboot one"),
    ):
        commands.add_parser(name, help=text).add_argument("node")
    execute = commands.add_parser("exec", help="run a command on a node")
    execute.add_argument("node")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    proxy = commands.add_parser("proxy", help="show or change what the registry proxy does")
    proxy.add_argument("--node", default="", help="for this node only; '*': for each by itself")
    proxy.add_argument("--rate", type=float, help="bytes per second; 0: no limit")
    proxy.add_argument("--delay", type=float, help="seconds per request")
    proxy.add_argument("--hold", metavar="DIGEST", help="withhold a blob")
    proxy.add_argument("--after", type=int, default=0, help="… from this byte on")
    proxy.add_argument("--release", metavar="DIGEST", help="let it go; '' for all")
    proxy.add_argument("--reset", action="store_true", help="no limits, no holds, nothing counted")
    return main


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    match arguments.command:
        case "build":
            build(arguments.component)
            return 0
        case "packages":
            packages.install()
            return 0
    return COMMANDS[arguments.command](Cluster(arguments.name), arguments)


def up(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Start or repair."""
    cluster.up(arguments.nodes.split(","), disk=int(arguments.disk * GIB))
    return 0


def down(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Remove, then look for what is left; 1 when there is something."""
    cluster.down()
    left = leftovers(cluster.name)
    print("\n".join(["left behind:", *left]) if left else f"cluster {cluster.name} is gone")
    return int(bool(left))


def env(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Print what a shell can evaluate."""
    settings = cluster.environment()
    print(f"export KUBECONFIG={shlex.quote(settings['KUBECONFIG'])}")
    print(f"export PATH={shlex.quote(settings['PATH'])}:$PATH")
    return 0


def node_command(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """What is done to one node."""
    match arguments.command:
        case "add-node":
            cluster.add_node(arguments.node)
        case "remove-node":
            cluster.remove_node(arguments.node)
        case "reboot":
            cluster.reboot(arguments.node)
        case "exec":
            argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
            return subprocess.run(cluster.node(arguments.node).enter(argv or ["sh"]), check=False).returncode
    return 0


def status(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Print every daemon and the nodes; 1 when something has ended or nothing runs."""
    lines = cluster.status()
    if not lines:
        print(f"cluster {cluster.name} does not run")
        return 1
    for name, state in lines:
        print(f"{name:32} {state}")
    print(cluster.kubectl("get", "nodes", "-o", "wide").rstrip())
    return int(any(state.startswith("has ended") for _, state in lines))


def proxy(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Orders first, then what the proxy says."""
    client = cluster.proxy
    if arguments.reset:
        client.reset()
    if arguments.rate is not None or arguments.delay is not None:
        client.pace(arguments.node, rate=arguments.rate, delay=arguments.delay)
    if arguments.hold:
        client.hold(arguments.hold, after=arguments.after, node=arguments.node)
    if arguments.release is not None:
        client.release(arguments.release, node=arguments.node)
    state = client.state()
    print(json.dumps({key: state[key] for key in ("paces", "holds", "blobs")}, indent=1))
    return 0


COMMANDS: dict[str, Callable[[Cluster, argparse.Namespace], int]] = {
    "up": up,
    "down": down,
    "status": status,
    "env": env,
    "proxy": proxy,
    "add-node": node_command,
    "remove-node": node_command,
    "reboot": node_command,
    "exec": node_command,
}


def main() -> int:
    """Entry of `python -m tests.testbed`."""
    try:
        return run(parser().parse_args())
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
