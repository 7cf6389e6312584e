"""`kubectl image-prepull repair`: from an annotation on a NodePrepull to the nonce in its spec, and back. Pure.

The annotation `imageprepull.io/repair` is `NONCE` for all images of the node, or `NONCE REFERENCE` for one. It is
removed when every image that it names has been compared, or could not be compared or pulled, or when no such image is
wanted there any more. What is paused keeps it standing: that is compared when the node is to have it again. So does what
waits for room to be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from imageprepull.controller.hopeless import has_seen_spec
from imageprepull.controller.orders import InvalidOrder, word_and_rest
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, NodePrepull

ANNOTATION = "imageprepull.io/repair"


@dataclass(frozen=True, slots=True)
class RepairOrder:
    """Check again what is present, and pull again what is broken; `reference` "" means every image of the node."""

    nonce: str
    reference: str = ""

    def __str__(self) -> str:
        """The annotation's value."""
        return f"{self.nonce} {self.reference}".strip()

    def names(self, image: DesiredImage) -> bool:
        """Whether the order is about an entry. What is let go of is nobody's to check."""
        return image.state is not Desired.ABSENT and self.reference in ("", image.reference)

    def concerns(self, image: DesiredImage) -> bool:
        """Whether an entry is to be checked now. What is paused is, too, when it is to be present again."""
        return image.state is Desired.PRESENT and self.names(image)


def read_order(annotations: Mapping[str, str]) -> RepairOrder | None:
    """What the annotations ask for.

    Raises:
        InvalidOrder: nothing that can be done.
    """
    found = word_and_rest(annotations, ANNOTATION, bounds.NONCE)
    if found is None:
        return None
    nonce, reference = found
    if len(reference) > bounds.REFERENCE:
        raise InvalidOrder(f"the image in {ANNOTATION} is longer than {bounds.REFERENCE} characters")
    return RepairOrder(nonce, reference)


def ordered(images: Sequence[DesiredImage], order: RepairOrder | None) -> list[DesiredImage]:
    """The entries with the order written into those that it concerns."""
    if order is None:
        return list(images)
    return [
        msgspec.structs.replace(image, repair=order.nonce) if order.concerns(image) else image
        for image in images
    ]


def end_of(order: RepairOrder, known: NodePrepull) -> str | None:
    """Why an order is over, in words; None while it stands. Only comparisons answer it, as far as the agent has seen this spec."""
    named = [image for image in known.spec.images if order.names(image)]
    if not named:
        return f"no ImagePrepull wants {order.reference or 'an image'} on the node"
    if not has_seen_spec(known):
        return None
    done = {
        (image.reference, image.digest)
        for image in known.status.images
        # What could not be pulled has nothing to compare; its reason is in the status.
        if image.repaired == order.nonce or image.state == ImageState.FAILED
    }
    return "carried out" if all((image.reference, image.digest) in done for image in named) else None
