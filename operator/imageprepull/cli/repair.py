"""`kubectl image-prepull repair NODE [IMAGE]`: ask a node's agent to check what it has, and wait for the answer.

It writes an annotation; the operator passes it on, the agent answers in the NodePrepull's status.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Sequence
from contextlib import aclosing

from imageprepull.cli import interrupts, kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.cli.older_crds import Needs, check_fields
from imageprepull.cli.repair_answer import (
    Asked,
    answered,
    blocked,
    exit_code,
    lost,
    outcome,
    still_waiting,
)
from imageprepull.cli.waiting import (
    FAILED,
    NOT_ASKED,
    TIMED_OUT,
    NothingToDo,
    add_timeout,
    canonical,
    ended,
)
from imageprepull.controller.repairs import ANNOTATION, RepairOrder
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodeImageStatus, NodePrepull

NEEDS: Needs = {NODEPREPULLS: ["spec.images.repair", "status.images.repaired", "status.images.repairReason"]}
STANDS = "; the order stands, and the operator takes it away when the agent has answered"


class NothingToRepair(NothingToDo):
    """The node holds no such image for us; the message says what it holds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `repair` takes."""
    parser.add_argument("node", help="name of the node")
    parser.add_argument("image", nargs="?", help="an image of an ImagePrepull (default: all of the node's)")
    add_timeout(parser, "stop waiting: {}; the order stands")
    kubeconfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: every image is there and was checked; 1: not so, or not possible; 3: not within the timeout.

    4: none has failed, but some cannot be checked or brought back now, as there is no room, the node is skipped, or
    it cannot say.
    """
    return ended(
        lambda: interrupts.run(
            repair(
                kubeconfig.target(arguments), arguments.node, canonical(arguments.image), arguments.timeout
            )
        )
    )


async def repair(target: kubeconfig.Target, node: str, reference: str, seconds: float) -> int:
    """Ask, and print each image's answer as it comes."""
    waiting, stands = NOT_ASKED, ""
    try:
        async with asyncio.timeout(seconds or None), ApiClient(target.access) as api:
            known = decode(NodePrepull, await api.get(NODEPREPULLS, node))
            asked = Asked(
                RepairOrder(secrets.token_hex(8), reference), named(known.spec.images, node, reference)
            )
            await check_fields(api, NEEDS)
            annotations = {ANNOTATION: str(asked.order)}
            await api.merge_patch(NODEPREPULLS, node, {"metadata": {"annotations": annotations}})
            stands = STANDS
            printed: set[tuple[str, str]] = set()
            async with aclosing(changes(api, NODEPREPULLS, node)) as found:
                async for document in found:
                    known = decode(NodePrepull, document)
                    answers = answered(known, asked)
                    for image in answers:
                        if (image.reference, image.digest) not in printed:
                            printed.add((image.reference, image.digest))
                            _answer(image, asked)
                    waiting = still_waiting(known, asked)
                    if not waiting:
                        return _ended(answers, blocked(known, asked), lost(known, asked))
    except TimeoutError:
        print(f"error: not done after {seconds:g} s: {waiting}{stands}", file=sys.stderr)
        return TIMED_OUT
    except asyncio.CancelledError:
        print(f"interrupted: {waiting}{stands}", file=sys.stderr)
        raise
    print(f"error: the NodePrepull {node} was deleted", file=sys.stderr)
    return FAILED


def _answer(image: NodeImageStatus, asked: Asked) -> None:
    said = f"{image.reference}: {outcome(image, asked)}"
    if asked.succeeded(image):
        print(said, flush=True)
    else:
        print(f"error: {said}", file=sys.stderr, flush=True)


def _ended(answers: Sequence[NodeImageStatus], stuck: Sequence[str], missed: Sequence[str]) -> int:
    for why in missed:
        print(f"error: {why}", file=sys.stderr)
    for why in stuck:
        print(f"not now: {why}", file=sys.stderr)
    return exit_code(answers, stuck, missed)


def named(images: Sequence[DesiredImage], node: str, reference: str) -> frozenset[str]:
    """The references that an order is about.

    Raises:
        NothingToRepair: none is.
    """
    held = {image.reference for image in images if image.state is not Desired.ABSENT}
    if not held:
        raise NothingToRepair(f"no ImagePrepull wants an image on the node {node}")
    if reference and reference not in held:
        raise NothingToRepair(
            f"no ImagePrepull wants {reference} on the node {node}; there are {', '.join(sorted(held))}"
        )
    return frozenset({reference} if reference else held)
