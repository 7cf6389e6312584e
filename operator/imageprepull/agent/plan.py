"""What to do now: desired images against what the runtime holds. Pure; the reconciler does the I/O before and after.

Rules: only an explicit Absent, or a present entry that says so, takes a pin away; an entry that merely vanished starts nothing, stops nothing and
removes nothing (its running pull ends by itself: the bytes are spent, and whoever made the entry vanish may bring it
back). A pull is stopped when its image became Paused or Absent, or when the same reference now means another digest,
since two pulls would otherwise race for one tag record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from imageprepull.oci.reference import repository_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage, OnRemoval

Key = tuple[str, str]
"""(reference, digest): what one pull is about."""


def key_of(image: DesiredImage) -> Key:
    """How an entry is known to plan and reconciler."""
    return image.reference, image.digest


@dataclass(frozen=True, slots=True)
class Observed:
    """What is so on the node, by entry. Moments are monotonic seconds."""

    present: Mapping[Key, bool]
    """What the runtime said; a missing key: not asked yet."""
    running: AbstractSet[Key]
    due: Mapping[Key, float]
    """When a failed image may be tried again."""
    final: AbstractSet[Key] = frozenset()
    """Those of `due` that are shown as Failed."""
    released: AbstractSet[Key] = frozenset()
    """Absent entries that were carried out."""
    removing: AbstractSet[Key] = frozenset()
    """Absent entries that are being carried out."""
    pinned: AbstractSet[Key] = frozenset()
    """Those that carry a pin of ours."""
    unmarked: AbstractSet[Key] = frozenset()
    """Those that are there without a label of ours that they are to have."""
    pin_due: Mapping[Key, float] = field(default_factory=dict)
    """When such a label may be set."""
    unpin_due: Mapping[Key, float] = field(default_factory=dict)
    """When a pin that is not wanted may be taken."""
    repaired: AbstractSet[Key] = frozenset()
    """Those whose `repair` was carried out."""
    repair_due: Mapping[Key, float] = field(default_factory=dict)
    """When a comparison that had no room may be tried again."""
    repair_cramped: AbstractSet[Key] = frozenset()
    """Comparisons that have no room still."""
    verifying: bool = False
    """Whether an image is being compared with its blobs."""
    cramped: AbstractSet[Key] = frozenset()
    """Pulls that wait for room on the disk."""
    held_back: AbstractSet[Key] = frozenset()
    """Those of `cramped` that must not start now."""


@dataclass(frozen=True, slots=True)
class Actions:
    """In this order: stop, start, verify, pin, unpin, remove.

    The limits are the strictest of the images in work; None when none is.
    """

    start: tuple[Key, ...] = ()
    stop: tuple[Key, ...] = ()
    verify: tuple[Key, ...] = ()
    pin: tuple[Key, ...] = ()
    unpin: tuple[Key, ...] = ()
    remove: tuple[Key, ...] = ()
    parallel_downloads: int | None = None
    stall_timeout: int | None = None


def plan(desired: Sequence[DesiredImage], observed: Observed, now: float) -> Actions:
    """The node's next steps. `now` is on the clock of `observed.due`."""
    wanted = {key_of(image): image for image in desired}
    references = {image.reference for image in desired}
    stop = tuple(
        key
        for key in sorted(observed.running)
        if (key in wanted and wanted[key].state is not Desired.PRESENT)
        or (key not in wanted and key[0] in references)
    )
    in_work = [
        (order, key, image)
        for order, (key, image) in enumerate(wanted.items())
        if image.state is Desired.PRESENT and (key in observed.running or observed.present.get(key) is False)
    ]
    # A stopped pull holds its slot until it has cleaned up; it wakes the reconciler then.
    slots = min((image.limits.parallel_images for _, _, image in in_work), default=0) - len(observed.running)
    waiting = [
        (-image.priority, key in observed.final, order, key)
        for order, key, image in in_work
        if key not in observed.running
        and key not in observed.held_back
        and observed.due.get(key, now) <= now
        # Its predecessor under the same reference must be gone first.
        and not any(other[0] == key[0] for other in observed.running)
        # What is still there of it is on its way out.
        and not any(other[1] == key[1] for other in observed.removing)
    ]
    # Of paused ones too: they keep what they have, and their pins have yielded to disk pressure as others' did.
    pin = tuple(
        key
        for key, image in wanted.items()
        if image.state is not Desired.ABSENT
        and key in observed.unmarked
        and key not in observed.running
        and observed.pin_due.get(key, now) <= now
        and not any(other[1] == key[1] for other in observed.removing)
    )
    # The ID's record is one for all references to a digest: while one of them wants the pin, none is taken.
    pinned_digests = {image.digest for image in desired if image.pin and image.state is not Desired.ABSENT}
    unpin = tuple(
        key
        for key, image in wanted.items()
        if (
            (
                image.state is Desired.ABSENT
                and image.on_removal is OnRemoval.UNPIN
                and key not in observed.released | observed.removing
                and observed.due.get(key, now) <= now
            )
            or (
                image.state is not Desired.ABSENT
                and not image.pin
                and key in observed.pinned
                and image.digest not in pinned_digests
                # Not `due`: an image that cannot be judged is put off by each question, its pin must not be.
                and observed.unpin_due.get(key, now) <= now
            )
        )
        and key not in observed.running
    )
    # One at a time: it reads and writes as much as a pull, and nobody waits for it.
    unverified = [
        key
        for key, image in wanted.items()
        if image.state is Desired.PRESENT
        and image.repair
        and observed.present.get(key)
        and key not in observed.repaired | observed.running | observed.repair_cramped
        and observed.repair_due.get(key, now) <= now
    ]
    return Actions(
        verify=() if observed.verifying else tuple(unverified[:1]),
        start=tuple(entry[-1] for entry in sorted(waiting)[: max(0, slots)]),
        stop=stop,
        pin=pin,
        unpin=unpin,
        remove=next_removal(wanted, observed, now),
        parallel_downloads=min((image.limits.parallel_downloads for _, _, image in in_work), default=None),
        stall_timeout=min((image.retry.stall_timeout_seconds for _, _, image in in_work), default=None),
    )


def next_removal(wanted: Mapping[Key, DesiredImage], observed: Observed, now: float) -> tuple[Key, ...]:
    """One at a time, and after the pulls of its repository.

    A new version mostly shares layers with the old one; a layer that was collected would be fetched once more. Pulls
    that wait for room are not waited for: the removal may be what makes it.
    """
    if observed.removing:
        return ()
    pulled = {digest for _, digest in observed.running}
    coming = {
        repository_of(key[0])
        for key, image in wanted.items()
        if image.state is Desired.PRESENT
        and not observed.present.get(key)
        and key not in observed.final | observed.cramped
    }
    due = (
        key
        for key, image in wanted.items()
        if image.to_be_deleted
        and key not in observed.released
        and observed.due.get(key, now) <= now
        and image.digest not in pulled
        and repository_of(key[0]) not in coming
    )
    return tuple(key for key, _ in zip(due, range(1), strict=False))


def next_due(
    desired: Sequence[DesiredImage],
    observed: Observed,
    now: float,
    look: float | None = None,
    *,
    began: float | None = None,
) -> float | None:
    """Seconds until a failed image or pin may be tried again, or the time of `look` comes; None when nothing waits for time.

    `began`: when the step did that has just been made; now, unless given. What has become due since may have been looked
    at before it was, and nothing else would wake anybody for it.
    """
    since = now if began is None else began
    keys = {key_of(image) for image in desired if image.state is not Desired.PAUSED}
    moments = [*observed.due.items(), *observed.repair_due.items()]
    waits = [max(0.0, due - now) for key, due in moments if key in keys and due > since]
    # Paused ones have pins, too.
    pins = [(key, due) for key, due in observed.pin_due.items() if key in observed.unmarked]
    pins += [(key, due) for key, due in observed.unpin_due.items() if key in observed.pinned]
    waits += [max(0.0, due - now) for _, due in pins if due > since]
    if look is not None:
        waits.append(max(0.0, look - now))
    return min(waits, default=None)
