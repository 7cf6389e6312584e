"""What the ImagePrepulls ask of one node at this moment, as far as it is known. Pure; `render` makes entries of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from imageprepull.controller.assign import Candidate, Choice
from imageprepull.oci.reference import repository_of
from imageprepull.resources.free_space import strictest
from imageprepull.resources.imageprepull import DeletionPolicy, PinPolicy
from imageprepull.resources.nodeprepull import DesiredImage, ImageLimits, OnRemoval, Retry


@dataclass(frozen=True, slots=True)
class Owners:
    """What is known of the ImagePrepulls at this moment.

    `candidates` and `choices` are by uid, of objects that exist and can be acted on. `gone` are uids whose
    deletion was witnessed (causes a and c). `confirmed` are uids whose current generation was just read again:
    only for those an entry that they no longer name is withdrawn (cause b). `retaining` are uids, gone ones too, whose
    newest seen version says Retain. `complete`: every object that exists is among the candidates as it is now, and
    nobody is suspected to be gone; only then an entry that may have more owners than it lists is withdrawn.
    """

    candidates: Mapping[str, Candidate]
    choices: Mapping[str, Choice]
    gone: Collection[str] = ()
    confirmed: Collection[str] = ()
    retaining: Collection[str] = ()
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """A reference for which nothing is written now, though an object names it.

    `digest`: empty while it is not known. `skips`: the object does not bring images to the node now; `lasting`: nor will it
    when the node's condition has passed.
    """

    candidate: Candidate
    reference: str
    digest: str
    skips: bool = False
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """`wanted` by (reference, digest); `named` by reference, and by its digest, or without one by repository, too."""

    wanted: dict[tuple[str, str], list[DesiredImage]] = field(default_factory=dict)
    named: dict[str, list[Named]] = field(default_factory=dict)
    meant: dict[str, list[Named]] = field(default_factory=dict)
    unresolved: dict[str, list[Named]] = field(default_factory=dict)


def asked_of(node: str, owners: Owners) -> Asked:
    """What all objects ask of the node."""
    asked = Asked()
    for uid, choice in owners.choices.items():
        candidate = owners.candidates[uid]
        for admission in choice.nodes.get(node, ()):
            reference = admission.image.record
            if admission.digest:
                entry = entry_of(candidate, reference, admission.digest)
                asked.wanted.setdefault((entry.reference, entry.digest), []).append(entry)
            else:
                _note(asked, Named(candidate, reference, ""))
        if skipped := choice.kept.get(node):
            for admission in skipped.images:
                reference, digest = admission.image.record, admission.digest
                _note(asked, Named(candidate, reference, digest, skips=True, lasting=skipped.lasting))
    return asked


def _note(asked: Asked, named: Named) -> None:
    asked.named.setdefault(named.reference, []).append(named)
    if named.digest:
        asked.meant.setdefault(named.digest, []).append(named)
    else:
        asked.unresolved.setdefault(repository_of(named.reference), []).append(named)


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
