"""Index, manifest and config of an image: found, verified, understood. What the content store has is not fetched.

The result is all that the rest of the pull, and `presence`, need to know about an image.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import chain_ids, sha256_digest
from imageprepull.oci.manifest import (
    Config,
    InvalidManifest,
    Manifest,
    check_layers,
    document_kind,
    parse_config,
    parse_index,
    parse_manifest,
)
from imageprepull.oci.platform import Platform, check_platform
from imageprepull.oci.selection import select
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound

Fetch = Callable[[Descriptor], Awaitable[bytes]]
_DEEPEST_INDEX = 3
LONGEST_DOCUMENT = 8 << 20
"""Bytes; what is longer is no document and is not read into memory."""


@dataclass(frozen=True, slots=True)
class ChainLayer:
    """A layer with its place in the chain; `parent` is the chain ID below, empty for the first."""

    descriptor: Descriptor
    diff_id: str
    chain_id: str
    parent: str


@dataclass(frozen=True, slots=True)
class Document:
    """Verified bytes and what they are; `children` only for an index."""

    descriptor: Descriptor
    body: bytes
    children: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """An image for one platform. `indexes` are the documents above the manifest, outermost first."""

    indexes: tuple[Document, ...]
    manifest_document: Document
    config_document: Document
    manifest: Manifest
    config: Config
    layers: tuple[ChainLayer, ...]

    @property
    def target(self) -> Descriptor:
        """The top-level descriptor: what image records point at and what `digest` means everywhere."""
        top = self.indexes[0] if self.indexes else self.manifest_document
        return top.descriptor

    @property
    def top_chain_id(self) -> str:
        """The chain ID of the whole image; empty for one without layers."""
        return self.layers[-1].chain_id if self.layers else ""


async def read_image(target: Descriptor, platform: Platform, fetch: Fetch) -> ImageDocuments:
    """Follow a top-level descriptor down to the config.

    Raises:
        InvalidManifest, NoMatchingPlatform: the documents are not an image that can be pulled here.
        Exception: whatever `fetch` raises.
    """
    indexes: list[Document] = []
    descriptor = target
    body = await fetch(descriptor)
    kind = document_kind(body, descriptor.media_type)
    while Descriptor(kind, descriptor.digest, descriptor.size).is_index:
        if len(indexes) == _DEEPEST_INDEX:
            raise InvalidManifest("AmbiguousManifest", f"{target.digest}: indexes within indexes without end")
        children = parse_index(body).manifests
        indexes.append(Document(_as(kind, descriptor), body, children))
        descriptor = select(children, platform)
        body = await fetch(descriptor)
        kind = document_kind(body, descriptor.media_type)
    manifest = parse_manifest(body)
    config_body = await fetch(manifest.config)
    config = parse_config(config_body)
    check_layers(manifest, config)
    check_platform(config.platform, platform)
    return ImageDocuments(
        indexes=tuple(indexes),
        manifest_document=Document(_as(kind, descriptor), body),
        config_document=Document(manifest.config, config_body),
        manifest=manifest,
        config=config,
        layers=chain_layers(manifest, config),
    )


def chain_layers(manifest: Manifest, config: Config) -> tuple[ChainLayer, ...]:
    """Layers with their diff and chain IDs, bottom first."""
    chain = chain_ids(config.diff_ids)
    parents = ["", *chain][: len(chain)]
    together = zip(manifest.layers, config.diff_ids, chain, parents, strict=True)
    return tuple(ChainLayer(*parts) for parts in together)


async def read_local(
    containerd: Containerd, descriptor: Descriptor, *, longest: int = LONGEST_DOCUMENT
) -> bytes | None:
    """A document that the content store has, verified; None when it has not, or has something else."""
    found = await containerd.content.info(descriptor.digest)
    if found is None or found.size != descriptor.size or found.size > longest:
        return None
    try:
        body = await containerd.content.read(descriptor.digest)
    except NotFound:
        return None  # recorded, but its file is gone.
    return body if sha256_digest(body) == descriptor.digest else None


async def read_stored(
    containerd: Containerd, target: Descriptor, platform: Platform, missing: Callable[[str], Exception]
) -> ImageDocuments:
    """An image as the content store has it, whole.

    Raises:
        InvalidManifest, NoMatchingPlatform: as `read_image`.
        Exception: what `missing` makes of the digest of a document that is not there, or damaged.
    """

    async def fetch(descriptor: Descriptor) -> bytes:
        body = await read_local(containerd, descriptor)
        if body is None:
            raise missing(descriptor.digest)
        return body

    return await read_image(target, platform, fetch)


def _as(kind: str, descriptor: Descriptor) -> Descriptor:
    """The descriptor with the media type that the document proved to have; nothing of a parent's platform."""
    return Descriptor(kind, descriptor.digest, descriptor.size)
