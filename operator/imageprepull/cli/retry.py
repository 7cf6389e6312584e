"""`kubectl image-prepull retry NAME [IMAGE]`: have what failed tried again at once, and wait for what comes of it.

It writes an annotation on the ImagePrepull; the operator passes it on and answers in the object's status, so whoever
may edit the object needs no other right. With the last word the annotation is taken away again. Who stops waiting before
that takes nothing back: the order stands, and the answer can be read from the object.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from imageprepull.cli import interrupts, kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.cli.older_crds import Needs, check_fields
from imageprepull.cli.waiting import (
    BLOCKED,
    DONE,
    FAILED,
    IS_IT_RUNNING,
    NOT_ASKED,
    TIMED_OUT,
    NothingToDo,
    add_timeout,
    canonical,
    displaced,
    ended,
)
from imageprepull.controller.retries import ANNOTATION, RetryOrder, is_over
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS, NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import RetryStatus

NEEDS: Needs = {
    NODEPREPULLS: ["spec.images.retry.nonce"],
    IMAGEPREPULLS: ["status.retry.nonce", "status.retry.waiting"],
}
NO_ANSWER = f"the operator has not answered yet: {IS_IT_RUNNING}"


class NothingToRetry(NothingToDo):
    """The object names no such image; the message says what it names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `retry` takes."""
    parser.add_argument("name", help="name of the ImagePrepull")
    parser.add_argument("image", nargs="?", help="one of its images (default: all of them)")
    parser.add_argument("--node", default="", help="on this node only (default: on all)")
    add_timeout(parser, "stop waiting: {}; the order stands")
    kubeconfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: what was meant is on its nodes; 1: it failed again, or is not possible; 3: not within the timeout.

    4: none of it failed, but some cannot be brought now, as there is no room, or its node cannot say.
    """

    def work() -> int:
        order = RetryOrder(secrets.token_hex(8), arguments.node, canonical(arguments.image))
        return interrupts.run(retry(kubeconfig.target(arguments), arguments.name, order, arguments.timeout))

    return ended(work)


async def retry(target: kubeconfig.Target, name: str, order: RetryOrder, seconds: float) -> int:
    """Ask, and follow the object until all nodes have answered."""
    namespace = target.namespace
    shown = f"{namespace}/{name}"
    code: int | None = None
    last, stands = NOT_ASKED, ""
    try:
        async with asyncio.timeout(seconds or None), ApiClient(target.access) as api:
            document = await api.get(IMAGEPREPULLS, name, namespace)
            check_named(document["spec"].get("images", []), shown, order.reference)
            await check_fields(api, NEEDS)
            body = {"metadata": {"annotations": {ANNOTATION: str(order)}}}
            await api.merge_patch(IMAGEPREPULLS, name, body, namespace=namespace)
            last = NO_ANSWER
            stands = f"; the order stands, and status.retry of {shown} tells what comes of it"
            async with aclosing(changes(api, IMAGEPREPULLS, name, namespace)) as found:
                async for document in found:
                    code, last = verdict(document, order)
                    if code is not None:
                        print(f"{shown}: {last}", file=sys.stderr if code else sys.stdout, flush=True)
                        await take_away(api, document, order)
                        return code
    except ApiError as error:
        if code is None:
            raise
        _warn_left(shown, str(error))
        return code
    except TimeoutError:
        if code is not None:
            _warn_left(shown, f"the time, {seconds:g} s, was over")
            return code
        print(f"error: not done after {seconds:g} s: {last}{stands}", file=sys.stderr)
        return TIMED_OUT
    except asyncio.CancelledError:
        if code is not None:
            _warn_left(shown, "interrupted")
            raise
        print(f"interrupted: {last}{stands}", file=sys.stderr)
        raise
    print(f"error: {shown} was deleted", file=sys.stderr)
    return FAILED


def _warn_left(shown: str, why: str) -> None:
    """The verdict is out and stays; what is left behind does no harm."""
    print(
        f"warning: {shown}: the annotation {ANNOTATION} may still be there: {why}; the next retry takes its place",
        file=sys.stderr,
    )


def check_named(images: Sequence[dict[str, Any]], shown: str, reference: str) -> None:
    """Make sure that the object names the image.

    Raises:
        NothingToRetry: it does not.
    """
    named = [entry["image"] for entry in images]
    if reference and reference not in map(_canonical_if_any, named):
        raise NothingToRetry(f"{shown} does not name {reference}; it names {', '.join(named)}")


def _canonical_if_any(image: str) -> str:
    """Of a spec, whose images may be none; those are "" here."""
    try:
        return canonical(image)
    except NothingToDo:
        return ""


def verdict(document: dict[str, Any], order: RetryOrder) -> tuple[int | None, str]:
    """Exit code and what came of the order; no code while it is open."""
    answer = decode(RetryStatus, document.get("status", {}).get("retry") or {})
    if answer.nonce != order.nonce:
        standing = document["metadata"].get("annotations", {}).get(ANNOTATION)
        if standing != str(order):
            return FAILED, displaced(standing, "retry")
        return None, NO_ANSWER
    return _judged(answer, order)


def _judged(answer: RetryStatus, order: RetryOrder) -> tuple[int | None, str]:
    concerned = answer.ready + answer.waiting + answer.failed + answer.blocked
    nodes = f"{concerned} node" if concerned == 1 else f"{concerned} nodes"
    if not is_over(answer, order):
        return None, f"{answer.waiting} of {nodes} in work"
    why = ": ".join(
        word
        for word in (answer.example_node, answer.example_image, answer.reason or "Failed", answer.message)
        if word
    )
    if answer.failed:
        return FAILED, f"failed again on {answer.failed} of {nodes}, for example {why}"
    if answer.blocked:
        return BLOCKED, f"not now on {answer.blocked} of {nodes}, for example {why}"
    if answer.reason:
        return FAILED, why
    if not concerned:
        where = f"not for the node {order.node}" if order.node else "for no node"
        return FAILED, f"nothing to retry: {order.reference or 'it'} is {where}"
    return DONE, f"Ready on {nodes}"


async def take_away(api: ApiClient, document: dict[str, Any], order: RetryOrder) -> None:
    """Remove the annotation, unless somebody has written another one meanwhile."""
    metadata = document["metadata"]
    while metadata.get("annotations", {}).get(ANNOTATION) == str(order):
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": {ANNOTATION: None}}
        }
        try:
            await api.merge_patch(IMAGEPREPULLS, metadata["name"], body, namespace=metadata["namespace"])
        except ApiError as error:
            if not error.conflict:
                raise
            metadata = (await api.get(IMAGEPREPULLS, metadata["name"], metadata["namespace"]))["metadata"]
        else:
            return
