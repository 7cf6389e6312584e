"""Index, manifest and config: read, checked, and refused where two readers could understand different images.

The bytes come from a registry and are hostile. Digest and size are verified where they are fetched (`registry`);
here the shape is: types, descriptors, and that a document is one thing only (CVE-2021-41190).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from imageprepull.oci.descriptor import (
    CONFIGS,
    DOCKER_SCHEMA_1,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from imageprepull.oci.digests import InvalidDigest, check_digest
from imageprepull.oci.platform import Platform

T = TypeVar("T")
MAX_LAYERS = 500
"""Layers of one image. Linux mounts no overlay of more directories (`OVL_MAX_STACK`, fs/overlayfs), so that no container
could run on it; a manifest has room for 20,000, and each takes memory and a line of a status."""
_EMPTY = (b"null", b"[]", b"{}", b'""')
_KNOWN_KEYS = frozenset({"mediaType", "manifests", "config", "layers", "fsLayers", "schemaVersion"})


class InvalidManifest(ValueError):
    """A document that is not used.

    `reason` is MalformedDocument, AmbiguousManifest, NotAnImage, UnsupportedLayer, UnsupportedManifest,
    TooManyLayers, InvalidDigest or LayerCountMismatch.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests by platform, in the document's order."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: layers bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What the pull needs of an image's config; `diff_ids` are the digests of the unpacked layers, bottom first."""

    platform: Platform
    diff_ids: tuple[str, ...]


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")

    def typed(self) -> Platform:
        features = tuple(self.os_features or ())
        return Platform(self.os, self.architecture, self.variant or "", self.os_version or "", features)


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None


class _RootFs(msgspec.Struct):
    type: str = ""
    diff_ids: list[str] | None = None


class _Config(_Platform):
    rootfs: _RootFs | None = None


def document_kind(data: bytes, content_type: str = "") -> str:
    """The media type of an index or manifest: what the body says, else the header, else what its shape is.

    Registries serve manifests as text/plain or octet-stream, and bodies may lack `mediaType`.

    Raises:
        InvalidManifest: neither an index nor a manifest, both, or a schema 1 manifest.
    """
    keys = _keys(data)
    stated = _media_type(keys)
    header = content_type.partition(";")[0].strip().lower()
    if stated in DOCKER_SCHEMA_1 or "fsLayers" in keys:
        raise InvalidManifest(
            "UnsupportedManifest", "a schema 1 manifest; build and push the image again with a current tool"
        )
    listing, single = "manifests" in keys, "config" in keys or "layers" in keys
    if listing and single:
        raise InvalidManifest(
            "AmbiguousManifest", "the document is an index and a manifest at once (CVE-2021-41190)"
        )
    shape = INDEXES if listing else MANIFESTS if single else None
    if shape is None and stated not in INDEXES:
        raise InvalidManifest("MalformedDocument", "the document is neither an index nor a manifest")
    for claim, where in ((stated, "its mediaType"), (header, "the Content-Type")):
        if claim in INDEXES | MANIFESTS and shape is not None and claim not in shape:
            raise InvalidManifest(
                "AmbiguousManifest", f"the document's fields contradict {where}, {claim} (CVE-2021-41190)"
            )
    if stated and stated not in INDEXES | MANIFESTS:
        raise InvalidManifest("UnsupportedManifest", f"the document says that it is {stated!r}, not an image")
    if stated or header in INDEXES | MANIFESTS:
        return stated or header
    return OCI_INDEX if shape is INDEXES else OCI_MANIFEST


def parse_index(data: bytes) -> Index:
    """Read an index; entries of any kind are kept, `select` chooses among them.

    Raises:
        InvalidManifest: not an index, ambiguous, or malformed.
    """
    if document_kind(data) not in INDEXES:
        raise InvalidManifest("AmbiguousManifest", "an index was announced and a manifest came")
    keys = _keys(data)
    return Index(tuple(_descriptors(keys.get("manifests"), "manifests")))


def parse_manifest(data: bytes) -> Manifest:
    """Read the manifest of an image.

    Raises:
        InvalidManifest: not a manifest, ambiguous, malformed, an artifact that is no image (NotAnImage), with
            more layers than a node can mount (TooManyLayers) or one that cannot be unpacked (UnsupportedLayer).
    """
    media_type = document_kind(data)
    if media_type not in MANIFESTS:
        raise InvalidManifest("AmbiguousManifest", "a manifest was announced and an index came")
    keys = _keys(data)
    if "config" not in keys:
        raise InvalidManifest("MalformedDocument", "the manifest has no config")
    config = _typed(_decode(keys["config"], _Descriptor, "config"), "config")
    if config.media_type not in CONFIGS:
        raise InvalidManifest(
            "NotAnImage",
            f"the config is {config.media_type!r}: an artifact, or an image that must be pushed again with a current tool",
        )
    count = len(_decode(keys["layers"], list[msgspec.Raw], "layers")) if "layers" in keys else 0
    if count > MAX_LAYERS:
        raise InvalidManifest(
            "TooManyLayers",
            f"the image has {count} layers; Linux mounts at most {MAX_LAYERS}: build it with fewer",
        )
    layers = tuple(_descriptors(keys.get("layers"), "layers"))
    for number, layer in enumerate(layers):
        if not layer.is_layer:
            raise InvalidManifest(
                "UnsupportedLayer",
                f"layer {number} ({layer.digest}) is {layer.media_type!r}, which cannot be unpacked",
            )
    return Manifest(media_type, config, layers)


def parse_config(data: bytes) -> Config:
    """Read the config of an image.

    Raises:
        InvalidManifest: malformed, or without the diff IDs of layers (NotAnImage).
    """
    document = _decode(data, _Config, "the image config")
    rootfs = document.rootfs
    if rootfs is None or rootfs.type not in ("", "layers"):
        raise InvalidManifest("NotAnImage", "the config lists no layers in rootfs")
    diff_ids = tuple(_digest(text, f"diff ID {number}") for number, text in enumerate(rootfs.diff_ids or ()))
    return Config(document.typed().normalized(), diff_ids)


def check_layers(manifest: Manifest, config: Config) -> None:
    """Refuse an image whose manifest and config do not have the same number of layers.

    Raises:
        InvalidManifest: LayerCountMismatch.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise InvalidManifest(
            "LayerCountMismatch",
            f"the manifest has {len(manifest.layers)} layers and the config {len(config.diff_ids)} diff IDs",
        )


def _keys(data: bytes) -> dict[str, msgspec.Raw]:
    """The top-level keys that say something.

    containerd reads JSON with Go, where keys match in any case and the last one wins. A second spelling of a key
    that matters would show it another image than the one verified here.
    """
    keys = _decode(data, dict[str, msgspec.Raw], "the document")
    known = {key.lower(): key for key in _KNOWN_KEYS}
    for key in keys:
        if known.get(key.lower(), key) != key:
            raise InvalidManifest(
                "AmbiguousManifest", f"the document spells {known[key.lower()]!r} as {key!r}"
            )
    return {key: raw for key, raw in keys.items() if bytes(raw) not in _EMPTY}


def _media_type(keys: dict[str, msgspec.Raw]) -> str:
    return _decode(keys["mediaType"], str, "mediaType") if "mediaType" in keys else ""


def _decode(data: bytes | msgspec.Raw, model: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidManifest("MalformedDocument", f"{what} cannot be read: {error}") from None


def _descriptors(raw: msgspec.Raw | None, what: str) -> Iterable[Descriptor]:
    for number, entry in enumerate(_decode(raw, list[_Descriptor], what) if raw is not None else ()):
        yield _typed(entry, f"{what}[{number}]")


def _typed(entry: _Descriptor, what: str) -> Descriptor:
    if entry.size < 0:
        raise InvalidManifest("MalformedDocument", f"{what} has the size {entry.size}")
    platform = entry.platform.typed() if entry.platform else None
    digest = _digest(entry.digest, what)
    return Descriptor(
        entry.media_type, digest, entry.size, platform, entry.annotations or {}, tuple(entry.urls or ())
    )


def _digest(text: str, what: str) -> str:
    try:
        return check_digest(text)
    except InvalidDigest as error:
        raise InvalidManifest("InvalidDigest", f"{what}: {error}") from None
