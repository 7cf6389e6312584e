"""What is left to do for a chain of which the lower part exists, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprepull.pulling.documents import ChainLayer

ORDINARY_WINDOW = 8 << 20
"""Bytes; what zstd's levels up to 19 ask for at most, and every worker has room for."""
ORDINARY_REMEMBERED = 4 << 20
"""Bytes that every worker may remember of its layer's directories: 40,000 of the usual length."""
SHARED_MEMORY = 48 << 20
"""Bytes that all workers together may take beyond the ordinary: two of the widest windows, six of 16 MiB."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes for the zstd window of a layer, and for what is remembered of its directories. By default every worker's."""

    window: int = ORDINARY_WINDOW
    remembered: int = ORDINARY_REMEMBERED


@dataclass(frozen=True, slots=True)
class Work:
    """A layer to be unpacked: its place in the chain, its compressed bytes, and what memory it asks for, as far as known."""

    position: int
    size: int
    memory: Memory = Memory()


def missing_blobs(layers: Sequence[ChainLayer], existing: int) -> dict[str, list[int]]:
    """The blobs to fetch, lowest layer first, each with the positions of the layers that it is.

    A blob may be several layers: it is fetched once and applied at each place, for the chain IDs differ.
    Layers below `existing` are neither fetched nor applied.
    """
    blobs: dict[str, list[int]] = {}
    for position in range(existing, len(layers)):
        blobs.setdefault(layers[position].descriptor.digest, []).append(position)
    return blobs


def beyond_ordinary(memory: Memory) -> int:
    """Bytes beyond those of every worker."""
    return max(0, memory.window - ORDINARY_WINDOW) + max(0, memory.remembered - ORDINARY_REMEMBERED)


def memory_fits(memory: Memory, taken: int) -> bool:
    """Whether a layer that asks for it fits beside those at work, which take `taken` bytes beyond the ordinary in all.

    What asks for more than all may share has it alone; the ordinary never wait.
    """
    beyond = beyond_ordinary(memory)
    return not beyond or not taken or taken + beyond <= SHARED_MEMORY


def next_to_unpack(waiting: Sequence[Work], slots: int) -> int:
    """Which of the waiting layers comes next, by its index.

    The lowest: what is committed in order must not wait for what comes later. But one so long that all the others,
    shared by the slots, are done no later than it: it would be at work alone in the end, with cores idle.
    """
    longest = max(range(len(waiting)), key=lambda index: waiting[index].size)
    if waiting[longest].size * slots > sum(work.size for work in waiting):
        return longest
    return min(range(len(waiting)), key=lambda index: waiting[index].position)
