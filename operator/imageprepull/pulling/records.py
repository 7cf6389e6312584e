"""Image records: the three names under which the CRI knows an image, its pins, and what keeps its content alive.

Only called when every snapshot is committed: the CRI believes a record without looking at snapshots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.documents import Document, ImageDocuments, read_local
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import (
    CRI_PINNED,
    MANAGED,
    PINNED,
    config_labels,
    index_labels,
    manifest_labels,
    record_labels,
    ref_key,
    source_label,
)
from imageprepull.pulling.ownership import BY_HAND, MADE, is_of_id
from imageprepull.pulling.placing import Placing
from imageprepull.pulling.steps import Step, reached
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists, NotFound
from imageprepull.runtime.images import ImageRecord

_LABEL_ATTEMPTS = 3
_RECORD_ATTEMPTS = 5


def record_names(reference: Reference, digest: str, config_digest: str) -> list[str]:
    """Names in the order in which the CRI makes them: ID, tag, digest. A digest reference has no tag record."""
    names = [config_digest, reference.tag_record, reference.digest_record(digest)]
    return [name for name in names if name]


async def find_record(containerd: Containerd, reference: Reference, digest: str | None) -> ImageRecord | None:
    """The record by which the runtime knows an image: under its digest, else under its tag if that means `digest`.

    What others imported may have its tag alone. Without `digest` it is what the tag means.
    """
    for name in (reference.digest_record(digest) if digest else None, reference.tag_record):
        record = await containerd.images.get(name) if name else None
        if record is not None and digest in (None, record.target.digest):
            return record
    return None


async def put_documents(
    containerd: Containerd,
    placing: Placing,
    reference: Reference,
    image: ImageDocuments,
    *,
    snapshotter: str,
    keep_layers: bool,
    unread: Collection[str],
) -> None:
    """Put config, manifest and indexes with the labels by which the garbage collector finds what they name.

    Args:
        containerd: the view bound to the pull's lease.
        placing: mends documents whose files are damaged.
        reference: whose registry and repository the documents are from.
        image: the documents.
        snapshotter: where the chain is.
        keep_layers: whether the manifest keeps the layers' blobs.
        unread: digests of documents that the content store did not give us: what it has of them, or another
            namespace, may be damaged.

    Raises:
        PullError: LabelsLost, when the labels do not stay; DamagedContent.
    """
    wanted: list[tuple[Document, dict[str, str]]] = [
        (image.config_document, config_labels(snapshotter, image.top_chain_id)),
        (image.manifest_document, manifest_labels(image.manifest, keep_layers=keep_layers)),
    ]
    wanted += [(index, index_labels(index.children)) for index in reversed(image.indexes)]
    for document, labels in wanted:
        sourced = {**labels, **source_label(reference.domain, reference.path, {})}
        descriptor = document.descriptor
        held: list[int] = []
        await containerd.content.put(ref_key(descriptor), descriptor, document.body, sourced, held.append)
        # What was written from its first byte on, the runtime has verified just now.
        if descriptor.digest in unread and held[:1] != [0]:
            await _mend(containerd, placing, document)
        await _ensure_labels(containerd, descriptor, labels)


async def _mend(containerd: Containerd, placing: Placing, document: Document) -> None:
    """The runtime never writes a file that it has, for us or another namespace, whatever became of it."""
    descriptor = document.descriptor
    if await read_local(containerd, descriptor) is not None:
        return
    await placing.mend(containerd, descriptor.digest, document.body)
    if await read_local(containerd, descriptor) is not None:
        return
    # Unless it was collected since: whoever asks for its labels says so.
    if await containerd.content.info(descriptor.digest) is not None:
        raise PullError(
            "DamagedContent",
            f"the runtime's copy of {descriptor.digest} is damaged and cannot be mended from here; remove it with "
            f"`ctr -n {containerd.namespace} content rm {descriptor.digest}`, and look at the disk",
        )


async def write_records(
    containerd: Containerd,
    reference: Reference,
    image: ImageDocuments,
    *,
    theirs: AbstractSet[str],
    pin: bool,
    by_hand: bool = False,
) -> None:
    """Create or update the records; only those, and those pins, that did not exist are marked as ours.

    Pins `by_hand` never are. `theirs` is what is remembered of others (provenance.py), and is done again: an image that
    we brought back for them is not ours.

    Raises:
        PullError: RecordUnsettled.
    """
    target = image.target
    if BY_HAND in theirs:
        pin = by_hand = True
    for name in record_names(reference, target.digest, image.manifest.config.digest):
        await _write_record(
            containerd,
            name,
            target,
            lambda existing: record_labels(
                pin=pin, existing=existing, by_hand=by_hand, restored=MADE in theirs
            ),
        )
        reached(Step.RECORDED, name)


async def _write_record(
    containerd: Containerd,
    name: str,
    target: Descriptor,
    labels_beside: Callable[[Mapping[str, str] | None], dict[str, str]],
) -> None:
    for _ in range(_RECORD_ATTEMPTS):
        known = await containerd.images.get(name)
        try:
            # Our mark goes on by nothing but a Create: a record that a kubelet's pull makes after we looked is the
            # kubelet's, and a removal must not take it.
            if known is None:
                await containerd.images.create(name, target, labels_beside(None))
            else:
                await containerd.images.update(name, target, labels_beside(known.labels))
        except (AlreadyExists, NotFound):
            continue  # made or deleted since we looked.
        return
    raise PullError(
        "RecordUnsettled",
        f"the runtime says of the image record {name} that it exists, and again that it does not; another client "
        "makes and deletes it",
    )


async def missing_below(containerd: Containerd, image: ImageDocuments, *, snapshotter: str) -> str:
    """What of an image its records stand on and is not there, in words; empty when all is.

    To be asked when the records are there: they keep alive what is there now. What another tool had collected by
    deleting the lease was gone before, and nobody was told.
    """
    documents = (image.config_document, image.manifest_document, *image.indexes)
    for digest in (document.descriptor.digest for document in documents):
        if await containerd.content.info(digest) is None:
            return f"the document {digest}"
    top = image.top_chain_id
    if top and await containerd.snapshots.stat(snapshotter, top) is None:
        return f"the layer {top}"
    return ""


async def take_back(containerd: Containerd, reference: Reference, image: ImageDocuments) -> None:
    """Delete those records that we have made: they stand on nothing, and the CRI would believe them."""
    for name in record_names(reference, image.target.digest, image.manifest.config.digest):
        known = await containerd.images.get(name)
        if known is not None and known.target.digest == image.target.digest and MANAGED in known.labels:
            with contextlib.suppress(NotFound):
                await containerd.images.delete(name)


async def pin(containerd: Containerd, reference: Reference, digest: str, config_digest: str) -> None:
    """Set our pin on the records of an image that is whole. What has vanished meanwhile is not made anew here."""
    names = record_names(reference, digest, config_digest)
    known = {name: await containerd.images.get(name) for name in names}
    targets = [
        record.target for name, record in known.items() if record is not None and name != config_digest
    ]
    if None in known.values() or {target.digest for target in targets} != {digest}:
        return
    for name, record in known.items():
        if record is not None:
            with contextlib.suppress(NotFound):
                labels = record_labels(pin=True, existing=record.labels)
                if name == config_digest:
                    # As `write_records`: the ID means what was pinned last, and is unpinned by it.
                    await containerd.images.update(name, targets[0], labels)
                else:
                    # A tag that somebody has moved since stays where it is.
                    await containerd.images.update_labels(name, labels)


async def unpin(
    containerd: Containerd, reference: Reference, digest: str, staying: Collection[Reference] = ()
) -> list[str]:
    """Take our pin from every record of the image; pins of others stay. Returns the records changed.

    `staying` are other references to the same digest whose pins stay: their names', and the ID's with them.
    """
    theirs = {name for other in staying for name in _names_of(other, digest)}
    changed = []
    for record in await containerd.images.list():
        if PINNED not in record.labels:
            continue
        if not is_record_of(record.name, record.target.digest, reference, digest):
            continue
        if record.name in theirs or (staying and is_of_id(record.name)):
            continue
        try:
            await containerd.images.update_labels(record.name, {CRI_PINNED: "", PINNED: ""})
        except NotFound:
            continue
        changed.append(record.name)
    return changed


def is_record_of(name: str, target: str, reference: Reference, digest: str) -> bool:
    """Whether the record `name` with this target is one of the image's, so that our pin on it goes with the image's.

    Records of other repositories with the same target were pinned by name for somebody else, except the ID's, which
    belongs to all of them.
    """
    return target == digest and (is_of_id(name) or name in _names_of(reference, digest))


def _names_of(reference: Reference, digest: str) -> set[str]:
    return {name for name in (reference.tag_record, reference.digest_record(digest)) if name}


async def _ensure_labels(containerd: Containerd, descriptor: Descriptor, labels: dict[str, str]) -> None:
    """Read back and mend: the labels of a COMMIT are ignored when the blob exists already.

    Without them the collector takes snapshots, config and layers away as soon as the lease is gone.
    """
    if not labels:
        return
    for _ in range(_LABEL_ATTEMPTS):
        found = await containerd.content.info(descriptor.digest)
        if found is not None and labels.items() <= found.labels.items():
            return
        await containerd.content.update_labels(descriptor.digest, labels)
    raise PullError(
        "LabelsLost",
        f"the runtime does not keep the garbage collection labels of {descriptor.digest}; another client changes them",
    )
