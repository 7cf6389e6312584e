"""`imageprepull pull|agent|operator`: finds the subcommand and imports only that.

A present image must answer within a fraction of a second, so nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from imageprepull import __version__

PURPOSE = "Container images on nodes before any pod asks for them."
SUBCOMMANDS = {
    "pull": "pull images into a running containerd, without Kubernetes",
    "agent": "run the node agent (in the DaemonSet)",
    "operator": "run the operator (in the Deployment)",
    "uninstall": "unpin all images on all nodes (in the chart's pre-delete hook)",
}
_OUTPUT_LOST = 120
"""As Python exits when it cannot flush."""


def dispatch(program: str, subcommands: dict[str, str], arguments: Sequence[str]) -> int:
    """Run the named subcommand: `cli/<name>.py` with `add_arguments(parser)` and `run(args) -> exit code`."""
    parser = argparse.ArgumentParser(prog=program, description=PURPOSE)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((argument for argument in arguments if argument in subcommands), None)
    for name, summary in subcommands.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"imageprepull.cli.{name}")
            module.add_arguments(subparser)
    parsed = parser.parse_args(arguments)
    return int(module.run(parsed))


def main() -> None:
    """Entry point of the console script `imageprepull`."""
    leave(dispatch("imageprepull", SUBCOMMANDS, sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """End the process, without taking the interpreter apart first: that is 40 of the 250 ms of finding a present image.

    So whatever must happen at the end belongs into a `finally` or `with` of the command, not into atexit.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # whoever read it has gone, or its disk is full
            code = _OUTPUT_LOST
    os._exit(code)
