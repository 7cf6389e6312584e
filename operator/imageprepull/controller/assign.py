"""Who is admitted: all ImagePrepulls against all nodes at once. Pure; its key is the cluster.

Everything chosen is admitted. Limits that hold over the whole cluster (rollout, registry budgets) belong here,
between choosing and admitting, because only here all objects are seen together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from imageprepull.controller.images import WantedImage
from imageprepull.controller.nodes import NodeFacts, judge
from imageprepull.controller.resolution import Resolution
from imageprepull.resources.imageprepull import ImagePrepull

NO_MATCHING_PLATFORM = "NoMatchingPlatform"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A readable ImagePrepull whose spec can be acted on."""

    prepull: ImagePrepull
    images: tuple[WantedImage, ...]

    @property
    def uid(self) -> str:
        """The object's uid: a re-created object of the same name is another one."""
        return self.prepull.metadata.uid

    @property
    def owner(self) -> str:
        """How entries of a NodePrepull name their owner."""
        metadata = self.prepull.metadata
        return f"{metadata.namespace}/{metadata.name}/{metadata.uid}"


@dataclass(frozen=True, slots=True)
class Admission:
    """One image for one node. Without `digest` the reference is not resolved yet, and nothing is written for it."""

    image: WantedImage
    digest: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """What one ImagePrepull means on a node that it names and skips; `lasting` as in `nodes.Verdict`."""

    images: tuple[Admission, ...]
    lasting: bool


@dataclass(slots=True)
class Choice:
    """What one ImagePrepull means for the nodes.

    `nodes` are the desired ones. `kept` are named by the object but skipped for now (a NoSchedule taint): they
    get nothing new and lose nothing of what it means. `skipped` lists nodes by reason, the kept ones included.
    """

    nodes: dict[str, tuple[Admission, ...]] = field(default_factory=dict)
    kept: dict[str, Skipped] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def assign(
    candidates: Iterable[Candidate], nodes: Mapping[str, NodeFacts], resolutions: Mapping[str, Resolution]
) -> dict[str, Choice]:
    """Choose nodes for every ImagePrepull; the answer is by uid."""
    return {candidate.uid: _choose(candidate, nodes, resolutions) for candidate in candidates}


def _choose(
    candidate: Candidate, nodes: Mapping[str, NodeFacts], resolutions: Mapping[str, Resolution]
) -> Choice:
    choice = Choice()
    by_platform: dict[tuple[str, str], tuple[Admission, ...]] = {}
    for name, node in nodes.items():
        verdict = judge(candidate.prepull.spec, node)
        if verdict.skip:
            choice.skipped.setdefault(verdict.skip, []).append(name)
        if not verdict.named:
            continue
        kind = (node.os, node.architecture)
        if kind not in by_platform:
            by_platform[kind] = _images_for(candidate, str(node.platform), resolutions)
        if verdict.skip:
            choice.kept[name] = Skipped(by_platform[kind], verdict.lasting)
        elif by_platform[kind]:
            choice.nodes[name] = by_platform[kind]
        else:
            choice.skipped.setdefault(NO_MATCHING_PLATFORM, []).append(name)
    return choice


def _images_for(
    candidate: Candidate, platform: str, resolutions: Mapping[str, Resolution]
) -> tuple[Admission, ...]:
    """The images that a node of this platform can hold; unresolved ones count as such until known better."""
    admissions = []
    for image in candidate.images:
        known = resolutions.get(image.record) or Resolution(image.record)
        if not known.lacks(platform):
            admissions.append(Admission(image, known.digest or image.reference.digest or ""))
    return tuple(admissions)
