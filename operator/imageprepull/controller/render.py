"""One node's NodePrepull.spec from what is admitted there and what stands there now. Pure; its key is the node.

Only this module's answer is ever written. It never drops an entry by itself: an entry is withdrawn as `Absent`
when each of its owners has let go of it for a witnessed cause, and leaves the spec when the agent reports that
done. An owner that is merely unknown, unreadable or unsure keeps its entries exactly as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from imageprepull.controller.assign import Candidate, Choice
from imageprepull.resources import bounds as schema
from imageprepull.resources.free_space import strictest
from imageprepull.resources.imageprepull import DeletionPolicy, PinPolicy
from imageprepull.resources.nodeprepull import (
    Desired,
    DesiredImage,
    ImageLimits,
    ImageState,
    NodePrepullStatus,
    OnRemoval,
    Retry,
)


@dataclass(frozen=True, slots=True)
class Owners:
    """What is known of the ImagePrepulls at this moment.

    `candidates` and `choices` are by uid, of objects that exist and can be acted on. `gone` are uids whose
    deletion was witnessed (causes a and c). `confirmed` are uids whose current generation was just read again:
    only for those an entry that they no longer name is withdrawn (cause b).
    """

    candidates: Mapping[str, Candidate]
    choices: Mapping[str, Choice]
    gone: Collection[str] = ()
    confirmed: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Rendered:
    """The entries, and the uids that must be confirmed before more of them can be withdrawn."""

    images: list[DesiredImage]
    confirm: frozenset[str]
    omitted: int = 0


def render(
    node: str, current: Sequence[DesiredImage], owners: Owners, done: Collection[tuple[str, str]] = ()
) -> Rendered:
    """The entries for one node. `done` are (reference, digest) that its agent has reported as withdrawn."""
    wanted, unresolved = _asked_for(node, owners)
    images: dict[tuple[str, str], DesiredImage] = {key: merge(entries) for key, entries in wanted.items()}
    confirm: set[str] = set()
    for entry in current:
        key = (entry.reference, entry.digest)
        if entry.state is Desired.ABSENT:
            if key not in images and key not in done:
                images[key] = entry
            continue
        held = _held(node, entry, owners)
        confirm |= held.confirm
        if not held.owners and entry.reference in unresolved:
            # Made anew, or another object: it names this tag, and may mean this very digest.
            held = _Held(sorted(set(unresolved[entry.reference])), held.confirm, paused=False)
        if held.owners:
            kept = msgspec.structs.replace(entry, owners=held.owners)
            if key in images:
                images[key] = merge([*wanted[key], kept])
            else:
                state = Desired.PAUSED if held.paused else entry.state
                images[key] = msgspec.structs.replace(kept, state=state)
        elif key not in images:
            images[key] = withdrawn(entry, owners) if entry.owners else entry
    fitting = sorted(images, key=lambda key: _rank(images[key]))[: schema.IMAGES]
    return Rendered(
        [images[key] for key in sorted(fitting)], frozenset(confirm), omitted=len(images) - len(fitting)
    )


def _rank(entry: DesiredImage) -> tuple[bool, int, str, str]:
    """What stays when a node has more entries than the schema allows: orders to let go, then by priority."""
    return entry.state is not Desired.ABSENT, -entry.priority, entry.reference, entry.digest


def _asked_for(
    node: str, owners: Owners
) -> tuple[dict[tuple[str, str], list[DesiredImage]], dict[str, list[str]]]:
    """What objects ask for on the node, and who names a reference whose digest is not known yet."""
    wanted: dict[tuple[str, str], list[DesiredImage]] = {}
    unresolved: dict[str, list[str]] = {}
    for uid, choice in owners.choices.items():
        candidate = owners.candidates[uid]
        for admission in choice.nodes.get(node, ()):
            reference = admission.image.record
            if admission.digest:
                entry = entry_of(candidate, reference, admission.digest)
                wanted.setdefault((entry.reference, entry.digest), []).append(entry)
            else:
                unresolved.setdefault(reference, []).append(candidate.owner)
    return wanted, unresolved


def entry_of(candidate: Candidate, reference: str, digest: str) -> DesiredImage:
    """What one ImagePrepull alone asks for one image."""
    spec = candidate.prepull.spec
    delete = spec.deletion_policy is DeletionPolicy.DELETE
    return DesiredImage(
        reference=reference,
        digest=digest,
        on_removal=OnRemoval.DELETE if delete else OnRemoval.UNPIN,
        priority=spec.priority,
        owners=[candidate.owner],
        pin=spec.pin_policy is PinPolicy.WHILE_REFERENCED,
        limits=ImageLimits(
            parallel_images=spec.limits.parallel_images,
            parallel_downloads=spec.limits.parallel_downloads,
            min_free_disk=strictest([spec.limits.min_free_disk]),
        ),
        retry=Retry(
            backoff_limit=spec.backoff_limit,
            max_backoff_seconds=spec.max_backoff_seconds,
            stall_timeout_seconds=spec.stall_timeout_seconds,
        ),
    )


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

    An owner that says Retain by now, in the same edit that drops the image, is enough to keep it.
    """
    known = (owners.candidates.get(uid_of(owner)) for owner in entry.owners)
    retained = any(
        candidate is not None and candidate.prepull.spec.deletion_policy is not DeletionPolicy.DELETE
        for candidate in known
    )
    on_removal = OnRemoval.UNPIN if retained else entry.on_removal
    return msgspec.structs.replace(entry, state=Desired.ABSENT, pin=False, on_removal=on_removal)


@dataclass(frozen=True, slots=True)
class _Held:
    """The owners of an entry that have not let go of it; `paused` when all of them skip the node for now."""

    owners: list[str]
    confirm: frozenset[str]
    paused: bool


def _held(node: str, entry: DesiredImage, owners: Owners) -> _Held:
    staying: list[str] = []
    confirm: set[str] = set()
    paused = True
    for owner in entry.owners:
        uid = uid_of(owner)
        if uid in owners.gone:
            continue
        candidate, choice = owners.candidates.get(uid), owners.choices.get(uid)
        if candidate is None or choice is None:
            # Unreadable, refused, or not seen: not knowing is no order.
            staying.append(owner)
            paused = False
            continue
        if node in choice.kept and any(image.record == entry.reference for image in candidate.images):
            staying.append(owner)
            continue
        named = _names(node, entry, choice)
        if named is Named.AS_IS:
            # It is among the wanted entries already.
            continue
        if named is Named.UNRESOLVED:
            # It may turn out to be this very digest.
            staying.append(owner)
            paused = False
        elif uid not in owners.confirmed:
            staying.append(owner)
            confirm.add(uid)
            paused = False
    return _Held(staying, frozenset(confirm), paused)


class Named(Enum):
    """Whether an object still names an entry on a node."""

    NO = auto()
    UNRESOLVED = auto()
    AS_IS = auto()


def _names(node: str, entry: DesiredImage, choice: Choice) -> Named:
    for admission in choice.nodes.get(node, ()):
        if admission.image.record != entry.reference:
            continue
        if not admission.digest:
            return Named.UNRESOLVED
        return Named.AS_IS if admission.digest == entry.digest else Named.NO
    return Named.NO


def uid_of(owner: str) -> str:
    """The uid in `namespace/name/uid`."""
    return owner.rpartition("/")[2]


def done_removals(status: NodePrepullStatus, generation: int) -> set[tuple[str, str]]:
    """What the agent has let go of, as (reference, digest): believed only of the current spec's generation."""
    if status.observed_generation != generation:
        return set()
    return {(image.reference, image.digest) for image in status.images if image.state == ImageState.ABSENT}
