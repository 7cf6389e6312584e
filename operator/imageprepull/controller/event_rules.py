"""Which Events a change of status is worth: few, and none after a restart, as the old status is the memory. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from imageprepull.controller.aggregate_conditions import NO_MATCHING_NODES, counted
from imageprepull.controller.aggregate_node import AGENT_UNAVAILABLE
from imageprepull.controller.retries import INVALID
from imageprepull.resources.base import Condition, encode
from imageprepull.resources.imageprepull import ImagePrepullSpec, ImagePrepullStatus


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event to be: `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


def notices(before: ImagePrepullStatus, after: ImagePrepullStatus, spec: ImagePrepullSpec) -> list[Notice]:
    """The Events between two statuses of one object."""
    return list(_notices(before, after, spec))


def _notices(
    before: ImagePrepullStatus, after: ImagePrepullStatus, spec: ImagePrepullSpec
) -> Iterator[Notice]:
    ready, stalled = _condition(after, "Ready"), _condition(after, "Stalled")
    desired = after.nodes.desired if after.nodes else 0
    if after.start_time != before.start_time and desired:
        images = len(after.images) + after.images_omitted
        yield Notice(
            "Normal", "Started", f"bringing {counted(images, 'image')} to {counted(desired, 'node')}"
        )
    if _turned_true(before, ready) and ready is not None:
        if ready.reason == NO_MATCHING_NODES:
            yield Notice("Warning", NO_MATCHING_NODES, f"{ready.message}: {_choice(spec)}")
        else:
            yield Notice("Normal", "Completed", ready.message)
    if stalled is not None and _turned_true(before, stalled):
        yield Notice("Warning", "Stalled", f"{stalled.reason}: {stalled.message}")
    if after.retry is not None and after.retry.reason == INVALID and after.retry != before.retry:
        yield Notice("Warning", INVALID, after.retry.message)
    known = {failure.reason for failure in before.failures}
    for failure in after.failures:
        if failure.reason not in known and failure.reason != AGENT_UNAVAILABLE:
            example = (
                f"{failure.reason} on {counted(failure.count, 'node')}, for example {failure.example_node}"
            )
            yield Notice("Warning", "Failed", f"{example}: {failure.message}")
            return


def _choice(spec: ImagePrepullSpec) -> str:
    chosen = {"nodeSelector": spec.node_selector}
    affinity = encode(spec.node_affinity) if spec.node_affinity else {}
    return ", ".join(
        f"{name} {json.dumps(value)}" for name, value in {**chosen, "nodeAffinity": affinity}.items() if value
    )


def _condition(status: ImagePrepullStatus, kind: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == kind), None)


def _turned_true(before: ImagePrepullStatus, now: Condition | None) -> bool:
    if now is None or now.status != "True":
        return False
    old = _condition(before, now.type)
    # A new generation that is at once Ready again is worth telling as well.
    return old is None or old.status != "True" or old.observed_generation != now.observed_generation
