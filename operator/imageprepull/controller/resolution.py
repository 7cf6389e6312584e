"""What is known of an image reference, once for the whole cluster: its digest and its manifests by platform.

Written by `resolve`, read by `assign` (is there something for this node?) and `aggregate` (layers, sizes, reasons).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a manifest; `size` in compressed bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class PlatformManifest:
    """An image on one platform (`linux/amd64`): digests of manifest and config, layers in the manifest's order."""

    platform: str
    manifest: str
    config: str
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Resolution:
    """A reference as far as it is known.

    Without `digest` nothing is planned for it. `missing` are platforms for which the image has nothing; a
    platform in neither map was not looked up yet. `reason` and `message` tell of the last attempt's failure;
    `permanent` says that trying again will hardly help.
    """

    record: str
    digest: str = ""
    platforms: Mapping[str, PlatformManifest] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    message: str = ""
    permanent: bool = False

    def lacks(self, platform: str) -> bool:
        """Whether it is certain that the image has nothing for this platform."""
        return platform in self.missing
