"""Which digest we gave a tag to on this node, and whether somebody has moved the tag since.

Asked by presence.py and naming.py, noted when an agent has brought or found an image. A pod that always pulls moves its tag to what the registry says
now, and that is the kubelet's good right: an order names a digest, and the tag is given to it once. It is noted on the
record by digest, since the kubelet's pull of a tag leaves nothing of ours on the tag's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from imageprepull.oci.reference import Reference
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound

GIVEN = "imageprepull.io/tag."


def is_noted(reference: Reference, labels: Mapping[str, str]) -> bool:
    """Whether the record by digest with these `labels` says that it was given the tag; one without a tag needs no note."""
    return reference.tag is None or GIVEN + reference.tag in labels


async def moved_to(containerd: Containerd, reference: Reference, digest: str) -> str:
    """What the tag means now, if it was given to `digest` and somebody has moved it since; else ""."""
    if reference.tag_record is None:
        return ""
    tag = await containerd.images.get(reference.tag_record)
    if tag is None or tag.target.digest == digest:
        return ""
    given = await containerd.images.get(reference.digest_record(digest))
    if given is None or given.target.digest != digest or not is_noted(reference, given.labels):
        return ""
    return tag.target.digest


async def without_moved_tag(containerd: Containerd, reference: Reference, digest: str) -> Reference:
    """The name to bring an image of `digest` under: the reference, or its digest alone where its tag was moved."""
    if await moved_to(containerd, reference, digest):
        return by_digest(reference, digest)
    return reference


def by_digest(reference: Reference, digest: str) -> Reference:
    """The same repository's `digest`."""
    return Reference.parse(reference.digest_record(digest))


async def note(containerd: Containerd, reference: Reference, digest: str) -> None:
    """Note that `digest` was given the tag, and no other of its repository: whose it was is to get it anew."""
    if reference.tag is None:
        return
    label = GIVEN + reference.tag
    ours = reference.digest_record(digest)
    for record in await containerd.images.list([f'labels."{label}"==true']):
        if record.name != ours and record.name.startswith(f"{reference.name}@"):
            await _label(containerd, record.name, {label: ""})
    await _label(containerd, ours, {label: "true"})


async def forget(containerd: Containerd, reference: Reference, digest: str) -> None:
    """The order is gone: one that comes later for this digest gets the tag."""
    if reference.tag is None:
        return
    record = await containerd.images.get(reference.digest_record(digest))
    if record is not None and is_noted(reference, record.labels):
        await _label(containerd, record.name, {GIVEN + reference.tag: ""})


async def _label(containerd: Containerd, name: str, labels: Mapping[str, str]) -> None:
    with contextlib.suppress(NotFound):
        await containerd.images.update_labels(name, labels)
