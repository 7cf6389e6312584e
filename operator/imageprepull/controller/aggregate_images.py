"""The images of an ImagePrepull's status: one line each, and their layers over all nodes on demand. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imageprepull.controller.aggregate_node import ImageOnNode, NodeView
from imageprepull.controller.assign import Candidate, Choice
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.resolution import PlatformManifest, Resolution
from imageprepull.resources.imageprepull import ImageStatus, LayerSummary, PlatformImage


@dataclass(slots=True)
class ImageDraft:
    """One image: its `line` without layers, and the nodes that shall hold it, by platform.

    `everywhere`: all of them do. `permanent`: what the line's reason says will hardly change. `unusable`: there is nothing in it for the platform of any chosen node.
    """

    line: ImageStatus
    manifests: dict[str, PlatformManifest] = field(default_factory=dict)
    nodes: dict[str, list[ImageOnNode]] = field(default_factory=dict)
    everywhere: bool = False
    unusable: bool = False
    permanent: bool = False

    def layers(self, platform: str) -> list[LayerSummary]:
        """The manifest's layers with the number of nodes in each state."""
        manifest = self.manifests[platform]
        # Most nodes are in one of a few situations: count those, then spread them over the layers.
        situations = Counter(tuple(image.layer_states()) for image in self.nodes.get(platform, ()))
        counts: list[Counter[str]] = [Counter() for _ in manifest.layers]
        for states, nodes in situations.items():
            for layer, state in enumerate(states):
                counts[layer][state] += nodes
        return [
            LayerSummary(digest=layer.digest, size=layer.size, nodes=dict(sorted(count.items())))
            for layer, count in zip(manifest.layers, counts, strict=True)
        ]


def draft_images(
    candidate: Candidate,
    choice: Choice,
    resolutions: Mapping[str, Resolution],
    views: Sequence[NodeView],
    nodes: Mapping[str, NodeFacts],
) -> list[ImageDraft]:
    """The images in the spec's order."""
    by_record: dict[str, dict[str, list[ImageOnNode]]] = {}
    for seen in views:
        platform = str(nodes[seen.node].platform)
        for image in seen.images:
            by_record.setdefault(image.admission.image.record, {}).setdefault(platform, []).append(image)
    wanted_by_someone = bool(choice.nodes or choice.skipped)
    drafts = []
    for wanted in candidate.images:
        known = resolutions.get(wanted.record) or Resolution(wanted.record)
        placed = by_record.get(wanted.record, {})
        on_nodes = [image for images in placed.values() for image in images]
        unusable = wanted_by_someone and not on_nodes and bool(known.missing)
        manifests = {name: known.platforms[name] for name in sorted(placed) if name in known.platforms}
        ready = sum(image.ready for image in on_nodes)
        line = ImageStatus(
            image=wanted.image,
            digest=known.digest or wanted.reference.digest or "",
            reason=known.reason or ("NoMatchingPlatform" if unusable else ""),
            message=known.message or ("; ".join(sorted(set(known.missing.values()))) if unusable else ""),
            nodes_ready=ready,
            platforms=[platform_line(manifest) for manifest in manifests.values()],
        )
        everywhere = bool(on_nodes) and ready == len(on_nodes)
        drafts.append(ImageDraft(line, manifests, placed, everywhere, unusable, known.permanent))
    return drafts


def platform_line(manifest: PlatformManifest) -> PlatformImage:
    """An image on one platform without its layers, which are counted as left out until there is room for them."""
    return PlatformImage(
        platform=manifest.platform,
        manifest=manifest.manifest,
        config=manifest.config,
        size=manifest.size,
        layers_omitted=len(manifest.layers),
    )
