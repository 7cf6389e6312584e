"""What came of an order to retry, for an ImagePrepull's `status.retry`. Pure; used by `aggregate`.

The other half of retries.py, which hands the order on to nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from imageprepull.controller.aggregate_node import AGENT_UNAVAILABLE, Cluster, ImageOnNode, NodeView
from imageprepull.controller.hopeless import has_seen_spec, no_answer
from imageprepull.controller.images import BadSpec
from imageprepull.controller.orders import InvalidOrder
from imageprepull.controller.retries import (
    INVALID,
    RetryOrder,
    has_failed,
    is_over,
    nonces,
    read_order,
)
from imageprepull.resources import bounds
from imageprepull.resources.base import Metadata
from imageprepull.resources.imageprepull import RetryStatus
from imageprepull.resources.nodeprepull import ImageState, NodePrepull


class Came(IntEnum):
    """What came of an image on a node; of several images the greatest is the node's."""

    READY = 0
    BLOCKED = 1
    FAILED = 2
    WAITING = 3


_WAITING = (Came.WAITING, "", "")


class Outcome(NamedTuple):
    """Of one image on one node."""

    came: Came
    node: str = ""
    image: str = ""
    reason: str = ""
    message: str = ""


def answer(
    metadata: Metadata,
    before: RetryStatus | None,
    views: Sequence[NodeView],
    cluster: Cluster,
    skipped: Mapping[str, Collection[str]],
) -> RetryStatus | None:
    """What came of the object's order so far; None where nothing is asked. An answer without `waiting` stays as it is.

    `skipped`: nodes by reason. Nobody waits for them, so they count only for an order that names one of them.
    """
    try:
        order = read_order(metadata.annotations)
    except InvalidOrder as error:
        return _unreadable(error)
    if order is None or is_over(before, order):
        return before if order else None
    outcomes = [
        max(found, key=lambda one: one.came) for seen in views if (found := _outcomes(order, seen, cluster))
    ]
    outcomes += [
        Outcome(
            Came.BLOCKED,
            order.node,
            order.reference,
            reason,
            "the node is skipped: nothing is brought to it now",
        )
        for reason, nodes in skipped.items()
        if order.node in nodes
    ]
    troubles = [one for one in outcomes if one.came in (Came.FAILED, Came.BLOCKED)]
    # A failure is worth more than what only has to wait.
    example = min(troubles, key=lambda one: (-one.came, one.node), default=Outcome(Came.READY))
    counts = {came: sum(one.came is came for one in outcomes) for came in Came}
    return RetryStatus(
        nonce=order.nonce,
        ready=counts[Came.READY],
        waiting=counts[Came.WAITING],
        failed=counts[Came.FAILED],
        blocked=counts[Came.BLOCKED],
        example_node=example.node,
        example_image=example.image[: bounds.REFERENCE],
        reason=bounds.cut(example.reason, bounds.REASON),
        message=bounds.cut(example.message, bounds.MESSAGE),
    )


def refused(metadata: Metadata, bad: BadSpec) -> RetryStatus | None:
    """The answer to an order of an object whose spec is not acted on."""
    try:
        order = read_order(metadata.annotations)
    except InvalidOrder as error:
        return _unreadable(error)
    if order is None:
        return None
    return RetryStatus(nonce=order.nonce, reason=bad.reason, message=bounds.cut(bad.message, bounds.MESSAGE))


def _unreadable(error: InvalidOrder) -> RetryStatus:
    return RetryStatus(reason=INVALID, message=bounds.cut(str(error), bounds.MESSAGE))


def _outcomes(order: RetryOrder, seen: NodeView, cluster: Cluster) -> list[Outcome]:
    found = []
    for image in seen.images:
        record = image.admission.image.record
        if order.concerns(seen.node, record):
            came, reason, message = _judged(order, seen.node, image, cluster)
            found.append(Outcome(came, seen.node, record, reason, message))
    return found


def _judged(order: RetryOrder, node: str, image: ImageOnNode, cluster: Cluster) -> tuple[Came, str, str]:
    """What came of an image, and why."""
    if image.ready:
        return Came.READY, "", ""
    if node in cluster.unavailable:
        # The entry carries the order; whenever an agent comes, it tries at once.
        return Came.FAILED, AGENT_UNAVAILABLE, "no agent is ready on this node; see its pod"
    if not image.admission.digest:
        known = cluster.resolutions.get(image.admission.image.record)
        if known is not None and known.permanent:
            return Came.FAILED, known.reason, known.message
        return _WAITING
    reported = cluster.reports.get(node)
    return _WAITING if reported is None or not has_seen_spec(reported) else _reported(order, image, reported)


def _reported(order: RetryOrder, image: ImageOnNode, known: NodePrepull) -> tuple[Came, str, str]:
    """What a node that has seen its spec says of an image. What it said before the order came to it does not count."""
    report = image.report
    key = image.admission.image.record, image.admission.digest
    carried = any(
        order.nonce in nonces(entry.retry.nonce)
        for entry in known.spec.images
        if (entry.reference, entry.digest) == key
    )
    if report is not None and has_failed(report) and not carried:
        return _WAITING
    if report is not None and report.state == ImageState.FAILED:
        return Came.FAILED, report.reason, report.message
    why = no_answer(known, report)
    return _WAITING if why is None else (Came.BLOCKED, *why)
