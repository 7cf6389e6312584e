"""A draft status made to fit: filled in a fixed order up to a size, cut by the schema's own numbers. Pure.

Order: conditions, counts and failures, one line per image, layers of images not ready everywhere, nodes (failed,
pulling, waiting, ready), layers of images that are ready everywhere. What is left out is counted. One string or one
item over the schema's bounds would make the API server reject the whole status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from imageprepull.controller.aggregate import Draft
from imageprepull.controller.aggregate_images import ImageDraft
from imageprepull.controller.aggregate_node import detail
from imageprepull.resources import bounds as schema
from imageprepull.resources.base import Model, encode
from imageprepull.resources.imageprepull import ImagePrepullStatus, NodeDetail, PlatformImage

TARGET = 16 * 1024
"""Bytes of JSON that a status of a large cluster aims at: it is written every few seconds."""
HARD = 64 * 1024
"""Bytes that no status exceeds."""
SMALL_CLUSTER = 10
"""Up to so many desired nodes everything is shown, as far as HARD allows."""
RESERVE = 512
"""Bytes for the counters of what is left out and for punctuation."""

NODE_NAME = 253
STATE = 32

_NODE_IMAGE = {
    "image": schema.REFERENCE,
    "state": STATE,
    "reason": schema.REASON,
    "message": schema.MESSAGE,
    "layers": (schema.LAYERS, {"state": STATE}),
    "layerStates": schema.LAYERS,
}
_PLATFORM = {
    "platform": 128,
    "manifest": schema.DIGEST,
    "config": schema.DIGEST,
    "layers": (schema.LAYERS, {"digest": schema.DIGEST}),
}
_IMAGE = {
    "image": schema.REFERENCE,
    "digest": schema.DIGEST,
    "reason": schema.REASON,
    "message": schema.MESSAGE,
    "platforms": (schema.PLATFORMS, _PLATFORM),
}
_NODE = {"node": NODE_NAME, "state": STATE, "images": (schema.IMAGES, _NODE_IMAGE)}
_REASON = {"reason": schema.REASON, "exampleNode": NODE_NAME, "message": schema.MESSAGE}
_CONDITION = {"type": 316, "status": 16, "reason": schema.REASON, "message": schema.CONDITION_MESSAGE}
BOUNDS: Mapping[str, Any] = {
    "conditions": (schema.CONDITIONS, _CONDITION),
    "readyNodes": 32,
    "progress": 16,
    "failures": (schema.FAILURES, _REASON),
    "skipped": (schema.SKIPPED, _REASON),
    "images": (schema.IMAGES, _IMAGE),
    "nodeDetails": (schema.NODE_DETAILS, _NODE),
    "retry": {"nonce": schema.NONCE, "exampleImage": schema.REFERENCE, **_REASON},
}
"""The CRD's maxLength (a number), maxItems (a pair with the items' bounds) and objects, by JSON name."""


def fit(draft: Draft, *, target: int = TARGET, hard: int = HARD) -> ImagePrepullStatus:
    """The status in its final size, in bytes of compact JSON."""
    desired = len(draft.views)
    filling = _Filling(clipped(draft.head), hard - RESERVE)
    images = _image_lines(draft, filling)
    filling.limit = (hard if desired <= SMALL_CLUSTER else target) - RESERVE
    lines = [image.line for image in images]
    for place, image in enumerate(images):
        if not image.everywhere:
            lines[place] = _with_layers(image, filling)
    details = _node_details(draft, filling)
    for place, image in enumerate(images):
        if image.everywhere:
            lines[place] = _with_layers(image, filling)
    return msgspec.structs.replace(
        filling.head,
        images=lines,
        images_omitted=len(draft.images) - len(lines),
        node_details=details,
        nodes_omitted=desired - len(details),
    )


class _Filling:
    """How many bytes are used, of how many."""

    def __init__(self, head: ImagePrepullStatus, limit: int) -> None:
        self.head = head
        self.limit = limit
        self._used = len(msgspec.json.encode(head))

    def take(self, piece: Model, already: int = 0) -> bool:
        """Reserve room for a piece that replaces one of `already` bytes; False when there is none."""
        size = size_of(piece) - already
        if self._used + size > self.limit:
            return False
        self._used += size
        return True


def size_of(piece: Model) -> int:
    """Bytes of a piece within a list."""
    return len(msgspec.json.encode(piece)) + 1


def _image_lines(draft: Draft, filling: _Filling) -> list[ImageDraft]:
    images: list[ImageDraft] = []
    for image in draft.images[: schema.IMAGES]:
        image.line = clipped(image.line, _IMAGE)
        if not filling.take(image.line):
            break
        images.append(image)
    return images


def _with_layers(image: ImageDraft, filling: _Filling) -> Any:
    """The line with the layers of each platform, as many as there is room for."""
    platforms = []
    for bare in image.line.platforms:
        layers = image.layers(bare.platform)
        full = _platform_with(bare, layers[: schema.LAYERS], len(layers))
        while full.layers and not filling.take(full, already=size_of(bare)):
            # Halving keeps the number of encodings small; the base layers are the ones that block the others.
            full = _platform_with(bare, layers[: len(full.layers) // 2], len(layers))
        platforms.append(full)
    return msgspec.structs.replace(image.line, platforms=platforms)


def _platform_with(bare: PlatformImage, layers: list[Any], of: int) -> PlatformImage:
    return msgspec.structs.replace(bare, layers=layers, layers_omitted=of - len(layers))


def _node_details(draft: Draft, filling: _Filling) -> list[NodeDetail]:
    """Nodes in the order of interest; one that does not fit whole is shown without layers and messages."""
    details: list[NodeDetail] = []
    for seen in draft.views[: schema.NODE_DETAILS]:
        one: NodeDetail = clipped(detail(seen), _NODE)
        if not filling.take(one):
            one = _slim(one)
            if not filling.take(one):
                break
        details.append(one)
    return details


def _slim(node: NodeDetail) -> NodeDetail:
    # The most frequent messages are in `failures`; all of them are in the NodePrepull.
    images = [msgspec.structs.replace(image, layers=[], message="") for image in node.images]
    return msgspec.structs.replace(node, images=images)


def clipped(model: Any, bounds: Mapping[str, Any] = BOUNDS) -> Any:
    """A model with every string and list cut by the schema's bounds."""
    return msgspec.convert(_clip(encode(model), bounds), type(model))


def _clip(document: dict[str, Any], bounds: Mapping[str, Any]) -> dict[str, Any]:
    for name, bound in bounds.items():
        value = document.get(name)
        if isinstance(value, str) and len(value) > bound:
            document[name] = schema.cut(value, bound)
        elif isinstance(value, dict):
            document[name] = _clip(value, bound)
        elif isinstance(value, list):
            most, inner = bound
            document[name] = [_clip(one, inner) for one in value[:most]]
    return document
