"""From the views of a node to what plan.py decides on. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from imageprepull.agent.doubts import Doubts
from imageprepull.agent.image import ImageView
from imageprepull.agent.plan import Key, Observed
from imageprepull.oci.reference import repository_of
from imageprepull.resources.reasons import NO_ROOM


def observed(
    views: Mapping[Key, ImageView],
    suspect: AbstractSet[Key],
    working: Mapping[Key, ImageView],
    removing: AbstractSet[Key],
    pinned: AbstractSet[Key] = frozenset(),
    *,
    repair_cramped: AbstractSet[Key] = frozenset(),
) -> Observed:
    """`suspect`: what was said of these does not count. `working`: views of what runs, vanished entries included.

    `pinned`: the entries with a pin of ours, as far as the runtime has listed pins. `repair_cramped`: those that cannot
    be compared for want of room.
    """
    held_back = {key for key, view in views.items() if view.gate is not None}
    waiting = {key: view.backoff for key, view in views.items() if view.backoff is not None}
    held = {key: view.held for key, view in views.items() if view.held is not None}
    return Observed(
        # A suspect is unknown: a pull starts only on an answer of now.
        present={key: found.present for key, found in held.items() if key not in suspect},
        running=frozenset(working),
        due={key: views[key].due for key in waiting},
        final={key for key, backoff in waiting.items() if backoff.final},
        released={key for key, view in views.items() if view.released},
        # Of an image that is not whole, or cannot be judged, only the list may say so.
        pinned={key for key, found in held.items() if found.our_pin} | pinned,
        unmarked={key for key, found in held.items() if found.unmarked and key not in suspect},
        repaired={key for key, view in views.items() if view.repaired == view.desired.repair},
        repair_due={key: view.repair_due for key, view in views.items()},
        repair_cramped=repair_cramped,
        verifying=any(view.verifying for view in working.values()),
        removing=removing,
        cramped=held_back | {key for key, backoff in waiting.items() if backoff.reason in NO_ROOM},
        held_back=held_back,
        pin_due={key: view.pin_due for key, view in views.items()},
        unpin_due={key: view.unpin_due for key, view in views.items()},
    )


def concerned(views: Iterable[Key], records: Iterable[str]) -> set[Key]:
    """Of which images some of these records may be; the ID's, which bear no name, are left to the resync."""
    repositories = {repository_of(record) for record in records}
    return {key for key in views if repository_of(key[0]) in repositories}


def note_losses(doubts: Doubts, views: Mapping[Key, ImageView], lost: Collection[str]) -> None:
    """Doubt the images of which `lost` are parts or records. What is nobody's makes all doubtful, and so does nothing."""
    left = set(lost)
    for key, view in views.items():
        if view.held is not None and (parts := view.held.parts.intersection(lost)):
            doubts.named.add(key)
            left -= parts
    doubts.named |= concerned(views, left)
    own = {reference for reference, _ in views}
    own |= {f"{repository_of(reference)}@{digest}" for reference, digest in views}
    doubts.everything = doubts.everything or not lost or not left <= own
