"""`kubectl image-prepull status|wait|retry|repair`: the plug-in's entry point. kubectl passes on everything after its name."""

from __future__ import annotations

import sys

from imageprepull.cli.main import dispatch

SUBCOMMANDS = {
    "status": "show how far an ImagePrepull is, layer by layer; -w follows it",
    "wait": "wait until an ImagePrepull is Ready; ends early when it can't become so",
    "retry": "try again at once what has failed of an ImagePrepull",
    "repair": "compare the images of a node with their blobs, and pull again what is broken",
}


def main() -> None:
    """Entry point of the console script `kubectl-image_prepull`."""
    sys.exit(dispatch("kubectl image-prepull", SUBCOMMANDS, sys.argv[1:]))
