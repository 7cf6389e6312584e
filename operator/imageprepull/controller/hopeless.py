"""Images that whoever waits for an order's answer need not wait for, since none is on its way. Pure.

Shared by retries and repairs: both are answered through the reports of agents.
"""

from __future__ import annotations

from imageprepull.resources.nodeprepull import ImageState, NodeImageStatus, NodePrepull
from imageprepull.resources.reasons import NO_ROOM

REPORT_OMITTED = "ReportOmitted"


def has_seen_spec(known: NodePrepull) -> bool:
    """Whether a node's status is about its present spec."""
    return known.status.observed_generation == known.metadata.generation


def no_answer(known: NodePrepull, report: NodeImageStatus | None) -> tuple[str, str] | None:
    """Why nothing will be heard of one of a node's images for now: reason and message; None where something may be.

    It waits for room, which nobody here makes, or the status, bounded as it is, has no place for its `report`.
    """
    if report is None:
        omitted = known.status.images_omitted
        if not omitted:
            return None
        images = "an image" if omitted == 1 else f"{omitted} images"
        return REPORT_OMITTED, (
            f"the node's status is full and leaves out {images}, perhaps this one; the agent's log tells of it"
        )
    if report.state == ImageState.WAITING and report.reason in NO_ROOM:
        return report.reason, report.message
    return None
