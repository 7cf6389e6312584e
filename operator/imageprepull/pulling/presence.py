"""Whether an image is there: asked of the runtime each time, never remembered, and never asked of a registry."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.manifest import InvalidManifest
from imageprepull.oci.platform import NoMatchingPlatform, Platform
from imageprepull.oci.reference import Reference
from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.documents import ChainLayer, ImageDocuments, read_stored
from imageprepull.pulling.durability import believed
from imageprepull.pulling.given_tags import Tag, ask_tag, by_digest
from imageprepull.pulling.labels import CRI_PINNED, GC_CONTENT, GC_SNAPSHOT, PINNED, UNSYNCED
from imageprepull.pulling.visible import CRI_NAMESPACE
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord


@dataclass(frozen=True, slots=True)
class Presence:
    """What the runtime holds of an image.

    `present`: records, documents and every snapshot are there, the CRI shows it, and it is pinned if that was asked.
    `missing` says in words what is not. `complete` is `present` but for the pin. `pinned` is what the CRI says:
    False for good on runtimes that know no pinning. `our_pin`: some record carries a pin that we set, present or not.
    `tag_means`: the digest to which somebody has moved the tag since the image was given it; it is held by its own
    digest then. `tag_noted`: it is remembered that it was given the tag.
    `digest`, `config_digest` and `layers` as far as known. `documents`: digests of indexes, manifest and config, of an
    image that lacks nothing but perhaps its pin.
    """

    present: bool
    digest: str = ""
    config_digest: str = ""
    layers: tuple[ChainLayer, ...] = ()
    missing: str = ""
    complete: bool = False
    pinned: bool = False
    our_pin: bool = False
    tag_means: str = ""
    tag_noted: bool = False
    documents: tuple[str, ...] = ()

    @property
    def parts(self) -> frozenset[str]:
        """By which names the runtime would tell of the loss of anything of a complete image, but for its records."""
        if not self.complete:
            return frozenset()
        layers = (name for layer in self.layers for name in (layer.descriptor.digest, layer.chain_id))
        return frozenset((*self.documents, *layers))


class _MissingError(Exception):
    """The part that is not there."""


async def presence(  # noqa: PLR0917 - six things make the question.
    containerd: Containerd,
    reference: Reference,
    digest: str | None,
    platform: Platform,
    snapshotter: str,
    pin: bool = False,
    *,
    boot_id: str = "",
    folders: ChainFolders | None = None,
    keep_layers: bool = False,
    lease_labels: Mapping[str, str] = MappingProxyType({}),
) -> Presence:
    """Look for an image by digest if one is given, else by what the reference's record points at.

    Args:
        containerd: the runtime.
        reference: as the pod would name it.
        digest: the top-level digest that is wanted; None is IfNotPresent: whatever the tag's record has.
        platform: which manifest of an index.
        snapshotter: where the chain must be.
        pin: whether the records must carry the pin.
        boot_id: when given, layers that another boot left unsynced count as missing.
        folders: when given, the directories of the chain must be there too.
        keep_layers: whether the blobs of its layers are to be kept from the collector too, where they are there.
        lease_labels: say whose the lease is that finding them may need.

    Raises:
        RuntimeFault: the runtime does not answer.
    """
    wanted = digest or reference.digest
    tag = await ask_tag(containerd, reference, wanted) if wanted else Tag()
    if tag.means and wanted:
        reference = by_digest(reference, wanted)
    names = [
        name for name in (reference.tag_record, reference.digest_record(wanted) if wanted else None) if name
    ]
    image: ImageDocuments | None = None
    target = wanted or ""
    try:
        records = await _records(containerd, names, wanted)
        target = records[0].target.digest
        image = await _documents(containerd, records[0].target, platform)
        await _kept(containerd, snapshotter, image)
        if keep_layers:
            await _layers_kept(containerd, image)
        await _snapshots(containerd, snapshotter, image.layers, boot_id)
        if folders is not None:
            await _folders(containerd, snapshotter, image.layers, folders, lease_labels)
        pinned = await _visible(containerd, names, image.manifest.config.digest)
        # Of an index, its manifest and other packings of one config only one can be the target of the ID's record.
        records += await _records(containerd, [image.manifest.config.digest], None)
    except _MissingError as missing:
        config = image.manifest.config.digest if image else ""
        return Presence(
            present=False,
            digest=target,
            config_digest=config,
            layers=image.layers if image else (),
            missing=str(missing),
            our_pin=await _our_pin(containerd, [*names, *filter(None, [config])], target),
        )
    unpinned = [record.name for record in records if pin and CRI_PINNED not in record.labels]
    return Presence(
        present=not unpinned,
        digest=target,
        config_digest=image.manifest.config.digest,
        layers=image.layers,
        missing=f"the pin of {unpinned[0]}" if unpinned else "",
        complete=True,
        pinned=pinned,
        # The ID's record may mean another image of this config, and carry the pin of that one.
        our_pin=any(PINNED in record.labels and record.target.digest == target for record in records),
        tag_means=tag.means,
        tag_noted=tag.noted,
        documents=tuple(
            one.descriptor.digest for one in (*image.indexes, image.manifest_document, image.config_document)
        ),
    )


async def _records(containerd: Containerd, names: list[str], digest: str | None) -> list[ImageRecord]:
    found = []
    for name in names:
        record = await containerd.images.get(name)
        if record is None:
            raise _MissingError(f"the image record {name}")
        if digest and record.target.digest != digest:
            raise _MissingError(f"{digest} under the name {name}, which means {record.target.digest}")
        found.append(record)
    return found


async def _our_pin(containerd: Containerd, names: list[str], digest: str) -> bool:
    """Of an image that is not whole: a pin keeps the kubelet from what is left of it all the same."""
    records = [await containerd.images.get(name) for name in names]
    return any(
        record is not None and record.target.digest == digest and PINNED in record.labels
        for record in records
    )


async def _documents(containerd: Containerd, target: Descriptor, platform: Platform) -> ImageDocuments:
    try:
        return await read_stored(
            containerd, target, platform, lambda digest: _MissingError(f"the content {digest}")
        )
    except (InvalidManifest, NoMatchingPlatform) as error:
        raise _MissingError(f"an image for {platform}: {error}") from error


async def _kept(containerd: Containerd, snapshotter: str, image: ImageDocuments) -> None:
    """Whether the collector, which follows labels from the record down, will leave the image whole."""
    above = [*image.indexes, image.manifest_document, image.config_document]
    for document, below in itertools.pairwise(above):
        await _label(containerd, document.descriptor, GC_CONTENT, below.descriptor.digest)
    if image.layers:
        await _label(
            containerd, image.config_document.descriptor, f"{GC_SNAPSHOT}{snapshotter}", image.top_chain_id
        )


async def _layers_kept(containerd: Containerd, image: ImageDocuments) -> None:
    """The next collection takes blobs without a label; what it has taken is missing as where nobody keeps them."""
    holder = image.manifest_document.descriptor
    found = await containerd.content.info(holder.digest)
    kept = set(found.labels.values()) if found is not None else set()
    for digest in dict.fromkeys(layer.digest for layer in image.manifest.layers):
        if digest not in kept and await containerd.content.info(digest) is not None:
            raise _MissingError(f"the label on {holder.digest} that keeps {digest}")


async def _label(containerd: Containerd, holder: Descriptor, prefix: str, held: str) -> None:
    found = await containerd.content.info(holder.digest)
    labels = found.labels if found is not None else {}
    if not any(key.startswith(prefix) and value == held for key, value in labels.items()):
        raise _MissingError(f"the label on {holder.digest} that keeps {held}")


async def _snapshots(
    containerd: Containerd, snapshotter: str, layers: tuple[ChainLayer, ...], boot_id: str
) -> None:
    found = await asyncio.gather(
        *(containerd.snapshots.stat(snapshotter, layer.chain_id) for layer in layers)
    )
    for layer, snapshot in zip(layers, found, strict=True):
        if snapshot is None:
            raise _MissingError(f"the snapshot {layer.chain_id} of layer {layer.descriptor.digest}")
        if boot_id and not believed(snapshot.labels.get(UNSYNCED), boot_id):
            raise _MissingError(f"the snapshot {layer.chain_id}, which another boot left unsynced")


async def _folders(
    containerd: Containerd,
    snapshotter: str,
    layers: tuple[ChainLayer, ...],
    folders: ChainFolders,
    labels: Mapping[str, str],
) -> None:
    broken = await folders.broken(containerd, snapshotter, [layer.chain_id for layer in layers], labels)
    if broken:
        raise _MissingError(f"the directory of the snapshot {broken[0]}")


async def _visible(containerd: Containerd, names: list[str], config_digest: str) -> bool:
    """Whether the CRI says that the image is pinned, after it showed it under every name and its ID."""
    if containerd.namespace != CRI_NAMESPACE:
        return False
    shown = None
    for name in (*names, config_digest):
        shown = await containerd.cri.image_status(name)
        if shown is None or shown.id != config_digest:
            raise _MissingError(f"{name} in the CRI's list")
    return bool(shown and shown.pinned)
