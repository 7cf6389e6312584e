"""Objects for the tests of the controller's pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imageprepull.controller.assign import Candidate
from imageprepull.controller.images import BadSpec, read_images
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.resolution import Layer, PlatformManifest, Resolution
from imageprepull.resources.base import Metadata, decode
from imageprepull.resources.imageprepull import ImagePrepull, ImagePrepullSpec, ImagePrepullStatus
from imageprepull.resources.nodeprepull import (
    DesiredImage,
    LayerStatus,
    NodeImageStatus,
    NodePrepull,
    NodePrepullSpec,
    NodePrepullStatus,
)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def candidate(
    name: str = "web",
    images: Sequence[str] = ("nginx:1",),
    *,
    uid: str = "",
    generation: int = 1,
    **spec: Any,
) -> Candidate:
    document = {"images": [{"image": image} for image in images], **spec}
    prepull = ImagePrepull(
        metadata=Metadata(name=name, namespace="shop", uid=uid or f"uid-{name}", generation=generation),
        spec=decode(ImagePrepullSpec, document),
        status=ImagePrepullStatus(),
    )
    found = read_images(prepull.spec)
    assert not isinstance(found, BadSpec), found
    return Candidate(prepull, found)


def resolution(
    record: str, number: int = 1, layers: int = 2, platforms: Sequence[str] = ("linux/amd64",)
) -> Resolution:
    return Resolution(
        record,
        digest(number),
        {
            platform: PlatformManifest(
                platform,
                digest(number + 100),
                digest(number + 200),
                tuple(Layer(digest(number * 1000 + place), 100 * (place + 1)) for place in range(layers)),
            )
            for platform in platforms
        },
    )


def nodes(*names: str, **facts: Any) -> dict[str, NodeFacts]:
    return {name: NodeFacts(name, f"uid-{name}", **facts) for name in names}


def node_prepull(
    name: str, *reports: NodeImageStatus, entries: Sequence[DesiredImage] = (), generation: int = 1
) -> NodePrepull:
    return NodePrepull(
        metadata=Metadata(name=name, uid=f"npp-{name}", generation=generation),
        spec=NodePrepullSpec(images=list(entries)),
        status=NodePrepullStatus(observed_generation=generation, images=list(reports)),
    )


def report(
    reference: str, number: int, state: str, layers: Sequence[tuple[str, int, int]] = (), **more: Any
) -> NodeImageStatus:
    return NodeImageStatus(
        reference=reference,
        digest=digest(number),
        state=state,
        layers=[
            LayerStatus(digest=digest(number * 1000 + place), state=layer, size=size, done=done)
            for place, (layer, size, done) in enumerate(layers)
        ],
        **more,
    )
