"""What a pull will still write, in bytes. Pure; space.py says whether there is room for it.

Compressed bytes are in the manifest. Unpacked ones are nowhere before a layer is unpacked, so a ratio by media type
stands in for them, corrected by what the layers of the same image turned out to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imageprepull.oci.descriptor import OCI_FOREIGN_LAYER, OCI_LAYER

GZIP_RATIO = 3.5
ZSTD_RATIO = 4.0
"""Of common images: 1.1 GB of gzip layers made 3.9 GB in the benchmark's, and zstd packs a little better."""
_PRIOR = 64 << 20
"""As many compressed bytes must be unpacked until what they say counts as much as the ratio of the media type."""


def usual_ratio(media_type: str) -> float:
    """Unpacked bytes per compressed byte, before anything is known of a layer."""
    if media_type.endswith("zstd"):
        return ZSTD_RATIO
    # Docker's plain `…diff.tar` may be packed all the same, as every type but OCI's own `…tar`.
    return 1.0 if media_type in (OCI_LAYER, OCI_FOREIGN_LAYER) else GZIP_RATIO


@dataclass(frozen=True, slots=True)
class LayerSpace:
    """What is known of a missing layer at the moment, in bytes.

    `here`: of its `packed` bytes. `ratio`: the one expected. `unpacked`: of the tar so far; `complete`: all of it.
    `stored`: the content store has the blob.
    """

    digest: str
    packed: int
    here: int
    ratio: float
    unpacked: int = 0
    complete: bool = False
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a pull will still write, by what they are for. `content` is a copy of what `spool` holds."""

    spool: int = 0
    content: int = 0
    snapshots: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.spool + self.content + self.snapshots

    def larger(self, other: Need) -> Need:
        """The larger figure of each kind."""
        return Need(
            max(self.spool, other.spool),
            max(self.content, other.content),
            max(self.snapshots, other.snapshots),
        )


def need_of(layers: Sequence[LayerSpace], *, copied: bool) -> Need:
    """What the missing layers of an image will still write.

    `copied`: blobs are sent to the content store, beside the spool's; else they are not kept, or are the same files.
    A blob that is several layers is fetched once and unpacked at each place.
    """
    ratio = _learned(layers)
    packed = {layer.digest: max(0, layer.packed - layer.here) for layer in layers}
    whole = {layer.digest: layer.packed for layer in layers if not layer.stored}
    return Need(
        spool=sum(packed.values()),
        content=sum(whole.values()) if copied else 0,
        snapshots=sum(unpacked_left(layer, ratio) for layer in layers),
    )


def unpacked_left(layer: LayerSpace, factor: float) -> int:
    """Bytes of the tar that are still to come. `factor` corrects the usual ratio.

    A layer that is being unpacked has read at most what is here of it: its own ratio is at least that.
    """
    if layer.complete:
        return 0
    expected = layer.packed * layer.ratio * factor
    if layer.here:
        expected = max(expected, layer.packed * layer.unpacked / layer.here)
    return max(0, round(expected) - layer.unpacked)


def _learned(layers: Sequence[LayerSpace]) -> float:
    """By how much the layers that are unpacked differ from what was expected of them."""
    known = [layer for layer in layers if layer.complete and layer.unpacked and layer.packed]
    usual = sum(layer.packed * layer.ratio for layer in known)
    prior = _PRIOR * GZIP_RATIO
    return (sum(layer.unpacked for layer in known) + prior) / (usual + prior)
