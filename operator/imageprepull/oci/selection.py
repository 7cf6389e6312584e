"""Which manifest of an index a node takes."""

from __future__ import annotations

from collections.abc import Sequence

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.platform import NoMatchingPlatform, Platform, rank

_ATTESTATION = "vnd.docker.reference.type"


def select(manifests: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The entry of an index that containerd would take: the best match, the first of equals.

    An entry without a platform is taken when none matches. Attestations never are.
    The result may be an index itself.

    Raises:
        NoMatchingPlatform: lists the platforms of the index.
    """
    images = [entry for entry in manifests if _ATTESTATION not in entry.annotations]
    best: tuple[int, Descriptor] | None = None
    for entry in images:
        place = rank(entry.platform, wanted) if entry.platform else None
        if place is not None and (best is None or place < best[0]):
            best = (place, entry)
    if best is not None:
        return best[1]
    unsaid = [entry for entry in images if entry.platform is None]
    if unsaid:
        return unsaid[0]
    raise NoMatchingPlatform(wanted, [str(entry.platform) for entry in images if entry.platform])
