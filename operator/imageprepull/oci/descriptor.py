"""Descriptors and media types of images (OCI image-spec, descriptor.md; containerd `core/images/mediatypes.go`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imageprepull.oci.platform import Platform

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

INDEXES = frozenset({DOCKER_INDEX, OCI_INDEX})
MANIFESTS = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
CONFIGS = frozenset({DOCKER_CONFIG, OCI_CONFIG})

Compression = Literal["gzip", "zstd", "plain"]
_LAYERS: dict[str, Compression] = {
    **dict.fromkeys((DOCKER_LAYER, DOCKER_FOREIGN_LAYER, OCI_LAYER, OCI_FOREIGN_LAYER), "plain"),
    **{media_type + ".gzip": "gzip" for media_type in (DOCKER_LAYER, DOCKER_FOREIGN_LAYER)},
    **{media_type + ".zstd": "zstd" for media_type in (DOCKER_LAYER, DOCKER_FOREIGN_LAYER)},
    **{media_type + "+gzip": "gzip" for media_type in (OCI_LAYER, OCI_FOREIGN_LAYER)},
    **{media_type + "+zstd": "zstd" for media_type in (OCI_LAYER, OCI_FOREIGN_LAYER)},
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is, by what it is found, and how many bytes it has."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    urls: tuple[str, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests by platform."""
        return self.media_type in INDEXES

    @property
    def is_manifest(self) -> bool:
        """Whether it lists the config and layers of one image."""
        return self.media_type in MANIFESTS

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer that this version can unpack."""
        return self.media_type in _LAYERS

    @property
    def compression(self) -> Compression:
        """How the layer's tar is compressed, by its media type.

        Raises:
            ValueError: it is not a layer, or not one that this version can unpack.
        """
        try:
            return _LAYERS[self.media_type]
        except KeyError:
            raise ValueError(
                f"{self.digest}: {self.media_type!r} is not a layer that can be unpacked"
            ) from None
