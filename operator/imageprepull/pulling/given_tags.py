"""Which digest we gave a tag to on this node, and whether somebody has moved the tag since.

Asked by presence.py and naming.py, noted when an agent has brought or found an image. A pod that always pulls moves its
tag to what the registry says now, and that is the kubelet's good right: an order names a digest, and the tag is given to
it once. That is remembered in a lease (memory.py) until the order ends, or the tag is given to another digest; the agent
that looks after the image keeps it anew before it expires.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imageprepull.oci.reference import Reference
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.leases import drop_lease
from imageprepull.pulling.memory import is_fading, keep, recall
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.leases import Lease

GIVEN = "imageprepull.io/given"
"""The name of the tag's record; `LEASE_IMAGE` says to which digest it was given."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A reference's tag, as its digest is concerned.

    `noted`: it is remembered, for some time to come, that this digest was given the tag, and no other.
    `means`: the digest to which somebody has moved it since; else "".
    """

    noted: bool = True
    means: str = ""


async def ask_tag(containerd: Containerd, reference: Reference, digest: str) -> Tag:
    """What is remembered of the tag, and what became of it. A reference without a tag needs no note."""
    if reference.tag_record is None:
        return Tag()
    notes = await _notes(containerd, reference.tag_record)
    # Also where another digest is noted beside it: whoever noted this one died before the other was forgotten.
    if not any(_is_of(digest, one) for one in notes):
        return Tag(noted=False)
    record = await containerd.images.get(reference.tag_record)
    means = record.target.digest if record is not None else digest
    return Tag(_is_settled(notes, digest), "" if means == digest else means)


async def without_moved_tag(containerd: Containerd, reference: Reference, digest: str) -> Reference:
    """The name to bring an image of `digest` under: the reference, or its digest alone where its tag was moved."""
    if (await ask_tag(containerd, reference, digest)).means:
        return by_digest(reference, digest)
    return reference


def by_digest(reference: Reference, digest: str) -> Reference:
    """The same repository's `digest`."""
    return Reference.parse(reference.digest_record(digest))


async def note(containerd: Containerd, reference: Reference, digest: str) -> None:
    """Note that `digest` was given the tag, and no other of its repository: whose it was is to get it anew."""
    if reference.tag_record is None:
        return
    kept = await keep(containerd, "given", {LEASE_IMAGE: digest, GIVEN: reference.tag_record})
    # Afterwards: who dies in between leaves one note too many, not none.
    for one in await _notes(containerd, reference.tag_record):
        if one.id != kept:
            await drop_lease(containerd, one.id)


async def forget(containerd: Containerd, reference: Reference, digest: str) -> None:
    """The order is gone: one that comes later for this digest gets the tag."""
    if reference.tag_record is None:
        return
    for one in await _notes(containerd, reference.tag_record):
        if _is_of(digest, one):
            await drop_lease(containerd, one.id)


async def _notes(containerd: Containerd, tag: str) -> list[Lease]:
    return await recall(containerd, {GIVEN: tag})


def _is_of(digest: str, note: Lease) -> bool:
    return note.labels.get(LEASE_IMAGE) == digest


def _is_settled(notes: Iterable[Lease], digest: str) -> bool:
    lasting = [one for one in notes if not is_fading(one)]
    return bool(lasting) and all(_is_of(digest, one) for one in notes)
