"""What is left to do for a chain of which the lower part exists, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprepull.pulling.documents import ChainLayer


@dataclass(frozen=True, slots=True)
class Work:
    """A layer to be unpacked: its place in the chain, and its compressed bytes."""

    position: int
    size: int


def missing_blobs(layers: Sequence[ChainLayer], existing: int) -> dict[str, list[int]]:
    """The blobs to fetch, lowest layer first, each with the positions of the layers that it is.

    A blob may be several layers: it is fetched once and applied at each place, for the chain IDs differ.
    Layers below `existing` are neither fetched nor applied.
    """
    blobs: dict[str, list[int]] = {}
    for position in range(existing, len(layers)):
        blobs.setdefault(layers[position].descriptor.digest, []).append(position)
    return blobs


def next_to_unpack(waiting: Sequence[Work], slots: int) -> int:
    """Which of the waiting layers comes next, by its index.

    The lowest: what is committed in order must not wait for what comes later. But one so long that all the others,
    shared by the slots, are done no later than it: it would be at work alone in the end, with cores idle.
    """
    longest = max(range(len(waiting)), key=lambda index: waiting[index].size)
    if waiting[longest].size * slots > sum(work.size for work in waiting):
        return longest
    return min(range(len(waiting)), key=lambda index: waiting[index].position)
