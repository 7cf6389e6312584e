"""One node's NodePrepull.spec from what is admitted there and what stands there now. Pure; its key is the node.

Only this module's answer is ever written. It never drops an entry by itself: an entry is withdrawn as `Absent`
when each of its owners has let go of it for a witnessed cause, and leaves the spec when the agent reports that
done. (Pins that the agent reports beside all entries are withdrawn like that, too.) An owner that is merely unknown,
unreadable or unsure keeps its entries exactly as they are; where there are more owners than an entry lists, anybody may
be one. So does an object that may mean the image and has no digest yet; it becomes an owner when it turns out to mean it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from imageprepull.controller.asked import Asked, Named, Owners, asked_of, entry_of
from imageprepull.controller.assign import Candidate
from imageprepull.controller.strays import stray_orders
from imageprepull.oci.reference import repository_of
from imageprepull.resources import bounds as schema
from imageprepull.resources.free_space import strictest
from imageprepull.resources.nodeprepull import (
    Desired,
    DesiredImage,
    ImageLimits,
    ImageState,
    NodePrepullStatus,
    OnRemoval,
    Retry,
    wanted_digests,
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The entries, and the uids that must be confirmed before more of them can be withdrawn.

    `omitted` are those that there is no room for. `unsure`: an entry stays only because its owners are not all listed.
    """

    images: list[DesiredImage]
    confirm: frozenset[str]
    omitted: tuple[DesiredImage, ...] = ()
    unsure: bool = False


def render(
    node: str,
    current: Sequence[DesiredImage],
    owners: Owners,
    done: Collection[tuple[str, str]] = (),
    strays: Collection[tuple[str, str]] = (),
) -> Rendered:
    """The entries for one node.

    `done` are (reference, digest) that its agent has reported as withdrawn, `strays` those that it has reported as
    pinned without an entry.
    """
    asked = asked_of(node, owners)
    images = {key: merge(entries) for key, entries in asked.wanted.items()}
    confirm: set[str] = set()
    unsure = False
    for entry in current:
        key = (entry.reference, entry.digest)
        if entry.state is Desired.ABSENT:
            if key not in images and key not in done:
                images[key] = _still_ordered(entry, asked)
            continue
        held = _held(entry, owners, asked)
        confirm |= held.confirm
        unsure = unsure or held.unsure
        if held.wishes:
            state = Desired.PAUSED if held.paused else entry.state
            state = Desired.PRESENT if key in images else state
            merged = merge([*asked.wanted.get(key, ()), *held.wishes])
            images[key] = msgspec.structs.replace(merged, state=state)
        elif key in images:
            continue
        elif held.undecided:
            # It stays where it is. Who names it by another reference alone, or skips the node, does not have it brought.
            state = Desired.PAUSED if held.paused else entry.state
            images[key] = msgspec.structs.replace(entry, state=state)
        else:
            # Paused and nobody's: an order to take away a stray pin that was taken back.
            owned = entry.owners or entry.state is Desired.PAUSED
            images[key] = withdrawn(entry, owners) if owned else entry
    # Only into the room that is left: an order must not push out what is wanted.
    orders = stray_orders(strays, images, asked)
    images |= dict(itertools.islice(orders.items(), max(0, schema.IMAGES - len(images))))
    ranked = _ranked(images.values())
    return Rendered(
        sorted(ranked[: schema.IMAGES], key=lambda entry: (entry.reference, entry.digest)),
        frozenset(confirm),
        omitted=tuple(ranked[schema.IMAGES :]),
        unsure=unsure,
    )


def _ranked(entries: Collection[DesiredImage]) -> list[DesiredImage]:
    """What stays first when a node has more entries than the schema allows.

    Orders to let go, what is safe from such an order to delete by its own entry alone, then by priority.
    """
    deleted = {entry.digest for entry in entries if entry.to_be_deleted}

    def rank(entry: DesiredImage) -> tuple[bool, bool, int, str, str]:
        ordered, ruled = entry.state is Desired.ABSENT, entry.digest in deleted
        return not ordered, not ruled, -entry.priority, entry.reference, entry.digest

    return sorted(entries, key=rank)


def takes_back(current: Sequence[DesiredImage], rendered: Rendered) -> bool:
    """Whether to write this keeps an image from being deleted that the entries as they stand have deleted.

    As agents go by it: an image stays when any entry wants its digest, under whatever reference. What there is no room
    for is wanted all the same, and its order vanishes with it.
    """
    standing = {entry.digest for entry in current if entry.to_be_deleted} - wanted_digests(current)
    return not standing.isdisjoint(wanted_digests([*rendered.images, *rendered.omitted]))


def merge(entries: Sequence[DesiredImage]) -> DesiredImage:
    """One entry for several owners: highest priority, strictest limits, pinned if any pins, deleted if all say so."""
    first = entries[0]
    if len(entries) == 1:
        return first
    return msgspec.structs.replace(
        first,
        # "Unpin" sorts after "Delete": one owner that wants to retain the image is enough.
        on_removal=OnRemoval(max(entry.on_removal for entry in entries)),
        priority=max(entry.priority for entry in entries),
        owners=sorted({owner for entry in entries for owner in entry.owners})[: schema.OWNERS],
        pin=any(entry.pin for entry in entries),
        limits=ImageLimits(
            parallel_images=min(entry.limits.parallel_images for entry in entries),
            parallel_downloads=min(entry.limits.parallel_downloads for entry in entries),
            min_free_disk=strictest(entry.limits.min_free_disk for entry in entries),
        ),
        retry=Retry(
            backoff_limit=min(entry.retry.backoff_limit for entry in entries),
            max_backoff_seconds=min(entry.retry.max_backoff_seconds for entry in entries),
            stall_timeout_seconds=min(entry.retry.stall_timeout_seconds for entry in entries),
        ),
    )


def withdrawn(entry: DesiredImage, owners: Owners) -> DesiredImage:
    """The order to let go of an image. The owners stay named, for whoever asks why.

    An owner that said Retain in the end, in the edit that drops the image or right before it was deleted, is enough
    to keep it. Whoever says so may be one that there was no room for.
    """
    retained = any(uid_of(owner) in owners.retaining for owner in entry.owners)
    if cut_short(entry):
        retained = retained or bool(owners.retaining)
    on_removal = OnRemoval.UNPIN if retained else entry.on_removal
    return msgspec.structs.replace(entry, state=Desired.ABSENT, pin=False, on_removal=on_removal)


@dataclass(frozen=True, slots=True)
class _Held:
    """What those ask for who have not let go of an entry; `paused` when all of them skip the node for now.

    `unsure`: nobody is known to hold it, and not all who may are listed. `undecided`: somebody who has no wishes may
    mean it, or does by another reference.
    """

    wishes: list[DesiredImage]
    confirm: frozenset[str]
    paused: bool
    unsure: bool
    undecided: bool


def _still_ordered(entry: DesiredImage, asked: Asked) -> DesiredImage:
    """An order to let go of an image that nobody is known to want again.

    One that names it (or its repository, where it would be deleted) without a known digest may mean this very image: until
    that is known it stays what and where it is, as it does for who means it and skips the node for now. The order stays
    what it is, too, but for whoever names that reference and means it: it stands again when none does.
    """
    keepers = _keepers(entry, asked)
    if keepers.owners:
        return msgspec.structs.replace(merge(keepers.owners), state=Desired.PAUSED)
    if keepers.others:
        return msgspec.structs.replace(entry, state=Desired.PAUSED, pin=merge(keepers.others).pin)
    return entry


@dataclass(frozen=True, slots=True)
class _Keepers:
    """What those ask for who keep an image for which they get nothing written now.

    `owners` mean it; `others` may mean it, or do by another reference, and have no say in what becomes of it.
    """

    owners: list[DesiredImage]
    others: list[DesiredImage]


def _keepers(entry: DesiredImage, asked: Asked) -> _Keepers:
    if entry.on_removal is OnRemoval.DELETE:
        # To delete it takes it from whoever names its digest by another reference, or will: any tag of its repository may.
        named = list(asked.meant.get(entry.digest, ()))
        if asked.unresolved:
            named += asked.unresolved.get(repository_of(entry.reference), ())
    else:
        named = [one for one in asked.named.get(entry.reference, ()) if one.digest in {"", entry.digest}]
    keepers = _Keepers([], [])
    for one in named:
        if not one.lasting or _had(one.candidate, entry):
            wishes = keepers.owners if _owns(one, entry) else keepers.others
            wishes.append(entry_of(one.candidate, entry.reference, entry.digest))
    return keepers


def _owns(named: Named, entry: DesiredImage) -> bool:
    """Whether the entry is meant, as far as known: its digest by its reference, or when that was known last.

    A paused entry may be an order that was taken back, which all who own it have given: that they once did says nothing.
    """
    if named.reference != entry.reference:
        return False
    if named.digest:
        return True
    return entry.state is Desired.PRESENT and named.candidate.owner in entry.owners


def _had(candidate: Candidate, entry: DesiredImage) -> bool:
    """Whether the entry may have been written for this object, or for one of its name before it."""
    name = candidate.owner.removesuffix(candidate.uid)
    return cut_short(entry) or any(owner.startswith(name) for owner in entry.owners)


def _held(entry: DesiredImage, owners: Owners, asked: Asked) -> _Held:
    keepers = _keepers(entry, asked)
    wishes = keepers.owners
    wanted = asked.wanted.get((entry.reference, entry.digest), ())
    named = {owner for wish in (*wishes, *wanted, *keepers.others) for owner in wish.owners}
    doubtful: list[str] = []
    confirm: set[str] = set()
    for owner in entry.owners:
        uid = uid_of(owner)
        if owner in named or uid in owners.gone:
            continue
        known = uid in owners.candidates and uid in owners.choices
        if known and uid in owners.confirmed:
            continue
        # Unreadable, refused or not seen, or not read again yet: not knowing is no order.
        doubtful.append(owner)
        if known:
            confirm.add(uid)
    unsure = cut_short(entry) and not owners.complete
    if unsure:
        # Whoever is not in the plan may be an owner that there was no room for. That there are so many stays on record.
        unsure = not (wishes or wanted or doubtful)
        doubtful = entry.owners
    if doubtful:
        # What these ask for is what the entry says.
        wishes.append(msgspec.structs.replace(entry, owners=doubtful))
    paused = all(one.skips for one in asked.named.get(entry.reference, ())) and not doubtful
    return _Held(wishes, frozenset(confirm), paused, unsure, bool(keepers.others))


def cut_short(entry: DesiredImage) -> bool:
    """Whether an entry may have more owners than it lists: the schema has no room for another one."""
    return len(entry.owners) >= schema.OWNERS


def uid_of(owner: str) -> str:
    """The uid in `namespace/name/uid`."""
    return owner.rpartition("/")[2]


def done_removals(status: NodePrepullStatus, generation: int) -> set[tuple[str, str]]:
    """What the agent has let go of, as (reference, digest): believed only of the current spec's generation."""
    if status.observed_generation != generation:
        return set()
    return {(image.reference, image.digest) for image in status.images if image.state == ImageState.ABSENT}
