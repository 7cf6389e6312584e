"""Pins without an entry, as agents report them: which are believed, and which are ordered away. Pure.

What is ordered is Absent with Unpin and nobody as owner; `render` keeps such an entry until the agent reports it done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from imageprepull.controller.asked import Asked
from imageprepull.oci.digests import InvalidDigest, check_digest
from imageprepull.oci.reference import InvalidReference, Reference, repository_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodePrepull, OnRemoval, StrayPin

Key = tuple[str, str]
"""(reference, digest)."""


def believed(prepull: NodePrepull) -> frozenset[Key]:
    """What the agent says beside the spec as it is now, of which an entry can be made."""
    if prepull.status.observed_generation != prepull.metadata.generation:
        return frozenset()
    return frozenset((stray.reference, stray.digest) for stray in prepull.status.stray_pins if _valid(stray))


def order_of(stray: Key) -> DesiredImage:
    """The entry that takes the pin away."""
    reference, digest = stray
    return DesiredImage(
        reference=reference, digest=digest, state=Desired.ABSENT, on_removal=OnRemoval.UNPIN, owners=[]
    )


def stray_orders(
    strays: Collection[Key], images: Mapping[Key, DesiredImage], asked: Asked
) -> dict[Key, DesiredImage]:
    """The orders for those that no object can mean. `images` are all other entries of the node.

    An entry of the same digest waits for nobody's pin: while it stands, what becomes of the image is its affair, and a
    Delete would be held up by an order that only unpins. A tag that has no digest yet may mean any digest of its
    repository; one whose object skips the node stands for what it means, as an entry of it would.
    """
    if not strays:
        return {}
    named = {*images, *asked.wanted}
    references = {reference for reference, _ in named} | asked.named.keys()
    digests = {digest for _, digest in named} | asked.meant.keys()
    return {
        stray: order_of(stray)
        for stray in sorted(strays)
        if stray[0] not in references
        and stray[1] not in digests
        and repository_of(stray[0]) not in asked.unresolved
    }


def _valid(stray: StrayPin) -> bool:
    """Whether the schema takes it as an entry: one that it refused would hold up the whole spec of its node."""
    try:
        Reference.parse(stray.reference)
        check_digest(stray.digest)
    except (InvalidReference, InvalidDigest):
        return False
    return True
