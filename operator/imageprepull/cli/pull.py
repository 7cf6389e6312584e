"""`imageprepull pull IMAGE…`: into a running containerd, without any Kubernetes.

An image that is present is found with the runtime's answers alone: what talks to registries is imported only when
one is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imageprepull.cli import interrupts
from imageprepull.cli.pull_session import Failure, Session
from imageprepull.cli.start import import_structlog_alone, raise_file_limit, start_workers
from imageprepull.oci.platform import InvalidPlatform, Platform
from imageprepull.oci.reference import InvalidReference, Reference

if TYPE_CHECKING:
    from imageprepull.cli.pull_display import Outcome

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"
FAILED = 1
USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `imageprepull pull` understands."""
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="reference, as in a pod: nginx, ghcr.io/a/b:tag, a/b@sha256:…",
    )
    add("--address", default=DEFAULT_ADDRESS, help="containerd's socket (default: %(default)s)")
    add("--namespace", default="k8s.io", help="containerd namespace (default: %(default)s, the kubelet's)")
    add("--snapshotter", default="", help="where to unpack (default: the one the CRI uses)")
    add("--platform", default="", help="for example linux/arm64 (default: this machine's)")
    add(
        "--hosts-dir",
        default="",
        help="folders of hosts.toml files, joined by ':' (default: the runtime's own)",
    )
    add("--docker-config", type=Path, metavar="FILE", help="credentials in docker's config.json format")
    add("--always", action="store_true", help="ask the registry what the tag means even if it is present")
    add("--polite", action="store_true", help="let what else runs on this machine go first")
    add("--pin", action="store_true", help="keep the image from the kubelet's garbage collection")
    add(
        "--keep-blobs",
        choices=("after", "before", "never"),
        default="after",
        help="the compressed layers: kept, or dropped when they are unpacked (default: %(default)s)",
    )
    add(
        "--sync",
        choices=("background", "before"),
        default="background",
        help="write the layers to disk after or before the image becomes visible (default: %(default)s)",
    )
    add(
        "--until",
        choices=("ready", "done"),
        default="done",
        help="return when the image is visible, or when it is on disk too (default: %(default)s)",
    )
    add(
        "--path",
        choices=("auto", "fast", "portable"),
        default="auto",
        help="unpack here while layers download, or let containerd do it; fast never falls back (default: %(default)s)",
    )
    add("--output", choices=("text", "json"), default="text", help="(default: %(default)s)")
    add("--parallel-downloads", type=positive, default=8, metavar="N", help="(default: %(default)s)")
    add(
        "--stall-timeout",
        type=positive,
        default=180,
        metavar="SECONDS",
        help="give a connection up after so long without a byte (default: %(default)s)",
    )
    add("--verbose", action="store_true", help="log retries and the like on stderr")
    add("--spool-dir", type=Path, metavar="DIR", help="(default: beside the snapshotter's folder)")


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Pull, print, and say by the exit code: 0 everything is there, 1 something failed, 2 usage."""
    try:
        references = [Reference.parse(text) for text in args.images]
        platform = Platform.parse(args.platform) if args.platform else Platform.host()
    except (InvalidReference, InvalidPlatform) as error:
        print(f"imageprepull pull: {error}", file=sys.stderr)
        return USAGE
    workers, _ = start_workers() if args.path != "portable" else (None, "")
    raise_file_limit()
    import_structlog_alone()
    try:
        # asyncio.run sees to SIGINT.
        work = Session(args, references, platform, workers).run()
        results = asyncio.run(interrupts.cancelled_by(signal.SIGTERM, work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("imageprepull pull: interrupted; nothing unfinished was left behind", file=sys.stderr)
        return FAILED
    return report(args, results)


def report(args: argparse.Namespace, results: list[Outcome | Failure]) -> int:
    """Print what became of each image: JSON gives one object for one image and a list for several."""
    from imageprepull.cli.pull_display import document, failure_document, summary  # noqa: PLC0415

    documents = []
    for image, result in zip(args.images, results, strict=True):
        if isinstance(result, Failure):
            print(f"imageprepull pull: {image}: {result.message} ({result.reason})", file=sys.stderr)
            documents.append(failure_document(image, result.reason, result.message))
            continue
        documents.append(document(image, result))
        if args.output == "text":
            print(summary(image, result))
    if args.output == "json":
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    return FAILED if any(isinstance(result, Failure) for result in results) else 0
