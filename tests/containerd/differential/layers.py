"""Layers as blobs with media types, and what became of a chain of them."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, field

import zstandard

from tests.containerd.differential.trees import Tree

OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_GZIP = f"{OCI_TAR}+gzip"
OCI_ZSTD = f"{OCI_TAR}+zstd"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_GZIP = f"{DOCKER_TAR}.gzip"
DOCKER_ZSTD = f"{DOCKER_TAR}.zstd"


@dataclass(frozen=True)
class Layer:
    """A blob; by its type a tar of any compression, which is found by the first bytes."""

    blob: bytes = field(repr=False)
    media_type: str = OCI_GZIP

    @property
    def detect(self) -> bool:
        return self.media_type != OCI_TAR

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.blob).hexdigest()}"


Chain = tuple[Layer, ...]
"""From the bottom up."""


@dataclass(frozen=True)
class Outcome:
    """Of one layer: the tree and what the whole tar was, or why not. `handed_on`: left to containerd by us."""

    tree: Tree = field(default_factory=dict, repr=False)
    diff_id: str = ""
    size: int = 0
    refusal: str = ""
    reason: str = ""
    final: bool = False
    entry: bytes = b""

    @property
    def accepted(self) -> bool:
        return not self.refusal

    @property
    def handed_on(self) -> bool:
        return self.reason == "Unsupported"


def gzipped(data: bytes, level: int = 1) -> bytes:
    return gzip.compress(data, level, mtime=0)


def zstd(data: bytes, **more: object) -> bytes:
    return zstandard.ZstdCompressor(level=1, **more).compress(data)  # type: ignore[arg-type]


def skippable(data: bytes = b"skipped", nibble: int = 0) -> bytes:
    """A frame that decoders pass over, as zstd:chunked and eStargz's zstd variant write them."""
    return (0x184D2A50 + nibble).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data
