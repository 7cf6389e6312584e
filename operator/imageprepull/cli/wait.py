"""`kubectl image-prepull wait NAME`: like `kubectl wait --for=condition=Ready`, but it ends on failure, with the reason."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from contextlib import aclosing
from typing import Any

from imageprepull.cli import kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.kube.access import AccessError
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS

READY, FAILED, TIMED_OUT = 0, 1, 3
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
NOTHING_YET = "no status yet: is the operator running?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `wait` takes."""
    parser.add_argument("name", help="name of the ImagePrepull")
    parser.add_argument(
        "--timeout",
        type=duration,
        default=0.0,
        metavar="TIME",
        help="give up: 90, 90s, 10m, 1h30m (0: never)",
    )
    kubeconfig.add_arguments(parser)


def duration(text: str) -> float:
    """Seconds of a time as kubectl takes it; a bare number is seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = DURATION.fullmatch(text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: Ready; 1: it cannot become Ready (or no such object); 3: not within the timeout."""
    try:
        target = kubeconfig.target(arguments)
        return asyncio.run(wait(target, arguments.name, arguments.timeout))
    except (AccessError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


async def wait(target: kubeconfig.Target, name: str, seconds: float) -> int:
    """Follow the object until `verdict` has one."""
    shown = f"{target.namespace}/{name}"
    last = NOTHING_YET
    try:
        async with (
            asyncio.timeout(seconds or None),
            ApiClient(target.access) as api,
            aclosing(changes(api, IMAGEPREPULLS, name, target.namespace)) as found,
        ):
            async for document in found:
                code, last = verdict(document)
                if code is not None:
                    print(f"{shown}: {last}", file=sys.stderr if code else sys.stdout)
                    return code
    except TimeoutError:
        print(f"error: {shown} not Ready after {seconds:g} s: {last}", file=sys.stderr)
        return TIMED_OUT
    print(f"error: {shown} was deleted", file=sys.stderr)
    return FAILED


def verdict(document: dict[str, Any]) -> tuple[int | None, str]:
    """Exit code and what the operator says; no code while it is open.

    Ready and Stalled count for the present generation only: older conditions say nothing about this spec.
    """
    generation = document["metadata"].get("generation", 0)
    conditions = {
        condition["type"]: condition
        for condition in document.get("status", {}).get("conditions", [])
        if condition.get("observedGeneration", 0) == generation
    }
    text = NOTHING_YET
    for kind, code in (("Ready", READY), ("Stalled", FAILED)):
        condition = conditions.get(kind)
        if condition is None:
            continue
        said = f"{condition['reason']}: {condition.get('message', '')}"
        if condition["status"] == "True":
            return code, said
        if kind == "Ready":
            text = said
    return None, text
