"""What is left to do for a chain of which the lower part exists. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from imageprepull.pulling.documents import ChainLayer


def missing_blobs(layers: Sequence[ChainLayer], existing: int) -> dict[str, list[int]]:
    """The blobs to fetch, lowest layer first, each with the positions of the layers that it is.

    A blob may be several layers: it is fetched once and applied at each place, for the chain IDs differ.
    Layers below `existing` are neither fetched nor applied.
    """
    blobs: dict[str, list[int]] = {}
    for position in range(existing, len(layers)):
        blobs.setdefault(layers[position].descriptor.digest, []).append(position)
    return blobs
