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

from imageprepull.cli import kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.cli.waiting import (
    BLOCKED,
    DONE,
    FAILED,
    TIMED_OUT,
    NothingToDo,
    add_timeout,
    canonical,
    ended,
)
from imageprepull.controller.hopeless import has_seen_spec, no_answer
from imageprepull.controller.repairs import ANNOTATION, RepairOrder
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, NodeImageStatus, NodePrepull


class NothingToRepair(NothingToDo):
    """The node holds no such image for us; the message says what it holds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `repair` takes."""
    parser.add_argument("node", help="name of the node")
    parser.add_argument("image", nargs="?", help="an image of an ImagePrepull (default: all of the node's)")
    add_timeout(parser, "stop waiting: {}; the agent goes on")
    kubeconfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: every image is there and was checked; 1: not so, or not possible; 3: not within the timeout.

    4: none has failed, but some cannot be brought back now, as there is no room, or the node cannot say.
    """
    return ended(
        lambda: asyncio.run(
            repair(
                kubeconfig.target(arguments), arguments.node, canonical(arguments.image), arguments.timeout
            )
        )
    )


async def repair(target: kubeconfig.Target, node: str, reference: str, seconds: float) -> int:
    """Ask, and print each image's answer as it comes."""
    waiting = ""
    try:
        async with asyncio.timeout(seconds or None), ApiClient(target.access) as api:
            known = decode(NodePrepull, await api.get(NODEPREPULLS, node))
            check_named(known.spec.images, node, reference)
            nonce = secrets.token_hex(8)
            annotations = {ANNOTATION: f"{nonce} {reference}".strip()}
            await api.merge_patch(NODEPREPULLS, node, {"metadata": {"annotations": annotations}})
            printed: set[tuple[str, str]] = set()
            async with aclosing(changes(api, NODEPREPULLS, node)) as found:
                async for document in found:
                    known = decode(NodePrepull, document)
                    answers = answered(known, nonce, reference)
                    for image in answers:
                        if (image.reference, image.digest) not in printed:
                            printed.add((image.reference, image.digest))
                            print(f"{image.reference}: {outcome(image, nonce)}", flush=True)
                    waiting = still_waiting(known, nonce, reference)
                    if not waiting:
                        stuck = blocked(known, nonce, reference)
                        for why in stuck:
                            print(f"not now: {why}", file=sys.stderr)
                        return exit_code(answers, stuck)
    except TimeoutError:
        print(f"error: not done after {seconds:g} s: {waiting}; the agent goes on", file=sys.stderr)
        return TIMED_OUT
    print(f"error: the NodePrepull {node} was deleted", file=sys.stderr)
    return FAILED


def check_named(images: Sequence[DesiredImage], node: str, reference: str) -> None:
    """Make sure that there is something to check.

    Raises:
        NothingToRepair: there is not.
    """
    held = sorted({image.reference for image in images if image.state is Desired.PRESENT})
    if not held:
        raise NothingToRepair(f"no ImagePrepull wants an image on the node {node}")
    if reference and reference not in held:
        raise NothingToRepair(
            f"no ImagePrepull wants {reference} on the node {node}; there are {', '.join(held)}"
        )


def answered(known: NodePrepull, nonce: str, reference: str = "") -> list[NodeImageStatus]:
    """The images of this order that the agent has checked, or that it could not pull: those have nothing to check."""
    order = RepairOrder(nonce, reference)
    wanted = {(image.reference, image.digest) for image in known.spec.images if order.concerns(image)}
    return [
        image
        for image in known.status.images
        if image.repaired == nonce
        or (image.state == ImageState.FAILED and (image.reference, image.digest) in wanted)
    ]


def outcome(image: NodeImageStatus, nonce: str) -> str:
    """An answer in words."""
    return image.repair_result if image.repaired == nonce else f"not pulled: {image.reason}: {image.message}"


def exit_code(answers: Sequence[NodeImageStatus], stuck: Sequence[str]) -> int:
    """When nothing is waited for any more. A failure is worth more than what only has to wait."""
    states = {image.state for image in answers}
    if stuck and ImageState.FAILED not in states:
        return BLOCKED
    return DONE if states <= {ImageState.READY} else FAILED


def blocked(known: NodePrepull, nonce: str, reference: str) -> list[str]:
    """Images of this order for which waiting brings no answer, each with the reason in words."""
    if not has_seen_spec(known):
        return []
    states = {(image.reference, image.digest): image for image in known.status.images}
    order = RepairOrder(nonce, reference)
    return [
        f"{image.reference}: {why[0]}: {why[1]}"
        for image in filter(order.concerns, known.spec.images)
        if (why := no_answer(known, states.get((image.reference, image.digest)))) is not None
    ]


def still_waiting(known: NodePrepull, nonce: str, reference: str) -> str:
    """What is not done yet, in words; "" when all of it is, and what was broken is back or has failed."""
    if ANNOTATION in known.metadata.annotations and not any(i.repair == nonce for i in known.spec.images):
        return "the operator has not passed it on yet: is it running?"
    states = {(image.reference, image.digest): image for image in known.status.images}
    order = RepairOrder(nonce, reference)
    for image in filter(order.concerns, known.spec.images):
        status = states.get((image.reference, image.digest))
        if status is not None and status.state == ImageState.FAILED:
            continue
        if has_seen_spec(known) and no_answer(known, status) is not None:
            continue
        if status is None or status.repaired != nonce:
            return f"the agent has not checked {image.reference} yet"
        if status.state != ImageState.READY:
            return f"{image.reference} is {status.state}"
    return ""
