"""What a tag means on this node while two entries name it and mean two digests. Pure.

It happens: an object that is refused keeps what it resolved once, and another resolves the tag anew. A tag has one image
record, so each pull would take it from the other for ever. One entry gets the tag, and the others are held by their
digests alone: digest record, ID and chain, with their pins. They are as present as they can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from imageprepull.agent.plan import Key, key_of
from imageprepull.oci.reference import repository_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage


def tags_elsewhere(desired: Sequence[DesiredImage]) -> dict[Key, str]:
    """Present entries that do not get their tag, each with the digest that does.

    The highest priority gets it, as everywhere. Among equals the digest that sorts first, which means nothing, but is
    the same at each step, after each restart and on each node: pods that name the tag run one image in the whole
    cluster. What a node happens to hold would be another one here and there. Paused entries bring nothing, so they
    claim nothing.
    """
    claims: dict[str, list[DesiredImage]] = {}
    for image in desired:
        if image.state is Desired.PRESENT:
            claims.setdefault(image.reference, []).append(image)
    elsewhere: dict[Key, str] = {}
    for rivals in claims.values():
        first, *others = sorted(rivals, key=lambda image: (-image.priority, image.digest))
        elsewhere |= {key_of(image): first.digest for image in others}
    return elsewhere


def without_tag(image: DesiredImage) -> DesiredImage:
    """The entry as one that names its digest."""
    return msgspec.structs.replace(image, reference=f"{repository_of(image.reference)}@{image.digest}")
