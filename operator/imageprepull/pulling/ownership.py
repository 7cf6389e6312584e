"""Whose an image record is, and whether it is still what it was judged as: asked before any is deleted. Pure.

Below removal.py, which deletes nothing of somebody else's, and chain_removal.py, which must where a layer is not to be
believed. Either looks at each record once more right before it deletes it: a pull by somebody else may come between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from imageprepull.pulling.labels import CRI_PINNED, MANAGED, PINNED, RESTORED
from imageprepull.runtime.images import ImageRecord

MADE = "made"
BY_HAND = "pinned"


def done_by_others(record: ImageRecord) -> frozenset[str]:
    """What somebody else did to a record that is therefore not ours to delete: `MADE`, `BY_HAND`; nothing: it is ours."""
    labels, done = record.labels, set()
    # One that we made may stand for somebody else's, which we had to delete (provenance.py).
    if labels.get(MANAGED) in {None, RESTORED}:
        done.add(MADE)
    # As `imageprepull pull --pin` does it by hand, on records that bear our mark, too.
    if CRI_PINNED in labels and PINNED not in labels:
        done.add(BY_HAND)
    return frozenset(done)


def of_somebody_else(record: ImageRecord) -> str:
    """One thing of `done_by_others`, in a word; "" when the record is ours."""
    return _in_a_word(done_by_others(record))


def taken_since(judged: ImageRecord, now: ImageRecord, targets: Collection[str]) -> str:
    """What somebody else did to a record since it was `judged`, as `of_somebody_else`; "" when nothing.

    `targets` are the digests of what is to go: a name may have moved from one to another.
    """
    if now.target.digest not in targets:
        return MADE
    return _in_a_word(done_by_others(now) - done_by_others(judged))


def _in_a_word(done: Collection[str]) -> str:
    return next((what for what in (MADE, BY_HAND) if what in done), "")


def is_of_id(name: str) -> bool:
    """Whether a record's name is an image ID, and no reference."""
    return name.startswith("sha256:")


def deletion_order(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Names first: as long as one is left a retry finds the others by what they point at.

    The ID comes last, so that until then the CRI shows the image as what it is.
    """
    return sorted(records, key=lambda one: (is_of_id(one.name), "@" in one.name, one.name))
