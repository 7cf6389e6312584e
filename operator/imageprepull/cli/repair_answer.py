"""What came of an order to repair, as a node's NodePrepull tells it to `kubectl image-prepull repair`. Pure.

What was ordered is remembered: an entry that is paused or let go of meanwhile is no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprepull.cli.waiting import BLOCKED, DONE, FAILED, IS_IT_RUNNING, displaced
from imageprepull.controller.hopeless import has_seen_spec, no_answer
from imageprepull.controller.repairs import ANNOTATION, RepairOrder
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, NodeImageStatus, NodePrepull
from imageprepull.resources.reasons import NO_ROOM


@dataclass(frozen=True, slots=True)
class Asked:
    """An order that was given, and the references that it was about then."""

    order: RepairOrder
    references: frozenset[str]

    def standing(self, known: NodePrepull) -> bool:
        """Whether the operator still has it before its eyes."""
        return known.metadata.annotations.get(ANNOTATION) == str(self.order)

    def named(self, known: NodePrepull) -> list[DesiredImage]:
        """The entries that it is about now: entries that came later too, as long as the operator orders them as well."""
        standing = self.standing(known)
        return [
            image
            for image in known.spec.images
            if self.order.names(image)
            and (standing or image.reference in self.references or image.repair == self.order.nonce)
        ]

    def missed(self, known: NodePrepull, image: DesiredImage, status: NodeImageStatus | None) -> bool:
        """Whether nobody will compare an entry any more, though nobody has: the order is gone."""
        # A failure may be the answer for which the order was taken away; `failed` waits for the agent to say so.
        settled = self.compared(status) or _failed(status)
        return not (settled or self.standing(known) or image.repair == self.order.nonce)

    def failed(self, known: NodePrepull, image: DesiredImage, status: NodeImageStatus | None) -> bool:
        """Whether an image could not be pulled, so that there is nothing to compare. One from before the order is no answer."""
        passed_on = image.repair == self.order.nonce or not self.standing(known)
        return _failed(status) and (self.compared(status) or (passed_on and has_seen_spec(known)))

    def succeeded(self, status: NodeImageStatus) -> bool:
        """Whether it is said of an image that it was compared, and that what was broken could be removed."""
        return self.compared(status) and not status.repair_reason

    def cramped(self, known: NodePrepull, image: DesiredImage, status: NodeImageStatus | None) -> str:
        """Why an image waits for room to be compared, in words; "" when it does not. The order stands meanwhile."""
        if status is None or image.repair != self.order.nonce or not has_seen_spec(known):
            return ""
        waits = not status.repaired and status.repair_reason in NO_ROOM
        return status.repair_result if waits else ""

    def compared(self, status: NodeImageStatus | None) -> bool:
        """Whether the agent has done with an image what was asked for, or has said why it cannot."""
        return status is not None and status.repaired == self.order.nonce


def _failed(status: NodeImageStatus | None) -> bool:
    return status is not None and status.state == ImageState.FAILED


def _statuses(known: NodePrepull) -> dict[tuple[str, str], NodeImageStatus]:
    return {(image.reference, image.digest): image for image in known.status.images}


def answered(known: NodePrepull, asked: Asked) -> list[NodeImageStatus]:
    """The images of this order that the agent has checked, or that it could not pull: those have nothing to check."""
    entries = {(image.reference, image.digest): image for image in asked.named(known)}
    return [
        status
        for key, status in _statuses(known).items()
        if (image := entries.get(key)) is not None
        and (asked.compared(status) or asked.failed(known, image, status))
    ]


def outcome(image: NodeImageStatus, asked: Asked) -> str:
    """An answer in words."""
    if asked.compared(image):
        return image.repair_result
    return f"not pulled: {image.reason}: {image.message}"


def exit_code(answers: Sequence[NodeImageStatus], stuck: Sequence[str], missed: Sequence[str]) -> int:
    """When nothing is waited for any more. A failure is worth more than what only has to wait."""
    states = {image.state for image in answers}
    if missed or ImageState.FAILED in states or any(image.repair_reason for image in answers):
        return FAILED
    if stuck:
        return BLOCKED
    return DONE if states == {ImageState.READY} else FAILED


def blocked(known: NodePrepull, asked: Asked) -> list[str]:
    """Images of this order for which waiting brings no answer, each with the reason in words."""
    statuses = _statuses(known)
    found = []
    for image in asked.named(known):
        status = statuses.get((image.reference, image.digest))
        if image.state is Desired.PAUSED:
            open_still = asked.standing(known) and not asked.compared(status)
            found.append(f"{image.reference}: {ImageState.PAUSED}: {_paused(image, open_still=open_still)}")
        elif cramped := asked.cramped(known, image, status):
            found.append(f"{image.reference}: {cramped}; the order stands until there is room")
        elif has_seen_spec(known) and (why := no_answer(known, status)) is not None:
            found.append(f"{image.reference}: {why[0]}: {why[1]}")
    return found


def _paused(image: DesiredImage, *, open_still: bool) -> str:
    objects = ", ".join(owner.rpartition("/")[0] for owner in image.owners)
    where = f", see status.skipped of {objects}" if objects else ""
    why = f"the node is skipped for now{where}, or a tag of its repository has no digest yet"
    return f"{why}{'; the order stands until that ends' if open_still else ''}"


def lost(known: NodePrepull, asked: Asked) -> list[str]:
    """What was ordered and is nobody's to check any more, each with the reason in words."""
    entries = asked.named(known)
    gone = asked.references - {image.reference for image in entries}
    found = [f"{reference}: no ImagePrepull wants it on the node any more" for reference in sorted(gone)]
    statuses = _statuses(known)
    why = displaced(known.metadata.annotations.get(ANNOTATION), "repair")
    found += [
        f"{image.reference}: not compared: {why}"
        for image in entries
        if asked.missed(known, image, statuses.get((image.reference, image.digest)))
    ]
    return found


def still_waiting(known: NodePrepull, asked: Asked) -> str:
    """What is not done yet, in words; "" when all of it is, and what was broken is back or has failed."""
    entries = [image for image in asked.named(known) if asked.order.concerns(image)]
    if entries and asked.standing(known) and not any(image.repair == asked.order.nonce for image in entries):
        return f"the operator has not passed it on yet: {IS_IT_RUNNING}"
    statuses = _statuses(known)
    for image in entries:
        status = statuses.get((image.reference, image.digest))
        if asked.failed(known, image, status) or asked.missed(known, image, status):
            continue
        if asked.cramped(known, image, status):
            continue
        if status is not None and asked.compared(status) and not asked.succeeded(status):
            continue
        if has_seen_spec(known) and no_answer(known, status) is not None:
            continue
        if status is None or not asked.compared(status):
            return f"the agent has not checked {image.reference} yet"
        if status.state != ImageState.READY:
            return f"{image.reference} is {status.state}"
    return ""
