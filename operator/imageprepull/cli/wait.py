"""`kubectl image-prepull wait NAME`: like `kubectl wait --for=condition=Ready`, but it ends on failure, with the reason."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing
from typing import Any

from imageprepull.cli import interrupts, kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.cli.waiting import DONE, FAILED, TIMED_OUT, add_timeout, ended
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import IMAGEPREPULLS

NOTHING_YET = "no status yet: is the operator running?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `wait` takes."""
    parser.add_argument("name", help="name of the ImagePrepull")
    add_timeout(parser, "give up: {}")
    kubeconfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: Ready; 1: it cannot become Ready (or no such object); 3: not within the timeout."""
    return ended(
        lambda: interrupts.run(wait(kubeconfig.target(arguments), arguments.name, arguments.timeout))
    )


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
    for kind, code in (("Ready", DONE), ("Stalled", FAILED)):
        condition = conditions.get(kind)
        if condition is None:
            continue
        said = f"{condition['reason']}: {condition.get('message', '')}"
        if condition["status"] == "True":
            return code, said
        if kind == "Ready":
            text = said
    return None, text
