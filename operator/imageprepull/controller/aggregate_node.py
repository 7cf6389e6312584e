"""One node's part of an ImagePrepull's status: its state, its images, its bytes. Pure; used by `aggregate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from imageprepull.controller import clock
from imageprepull.controller.assign import Admission
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.resolution import PlatformManifest, Resolution
from imageprepull.resources.imageprepull import LayerDetail, NodeDetail, NodeImageDetail
from imageprepull.resources.nodeprepull import ImageState, LayerState, NodeImageStatus, NodePrepull

AGENT_UNAVAILABLE = "AgentUnavailable"
NOT_RESOLVED = "NotResolved"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all ImagePrepulls are judged against.

    `unavailable` are nodes whose agent is missing for too long, `agentless` those without one at this moment.
    """

    nodes: Mapping[str, NodeFacts]
    reports: Mapping[str, NodePrepull]
    resolutions: Mapping[str, Resolution]
    unavailable: Collection[str] = ()
    agentless: Collection[str] = ()


class NodeState(StrEnum):
    """A desired node, as counted in `status.nodes`; the order is that of `nodeDetails`."""

    FAILED = "Failed"
    PULLING = "Pulling"
    WAITING = "Waiting"
    READY = "Ready"


@dataclass(frozen=True, slots=True)
class ImageOnNode:
    """One image on one node: what the agent reports of it (None: nothing yet), and its manifest if known."""

    admission: Admission
    report: NodeImageStatus | None
    manifest: PlatformManifest | None

    @property
    def state(self) -> str:
        """The reported state; an image that nothing is known of, or was withdrawn before, is waiting."""
        if self.report is None or self.report.state == ImageState.ABSENT:
            return ImageState.WAITING
        return self.report.state

    @property
    def ready(self) -> bool:
        """Whether the node holds the image, and so each of its layers."""
        return self.state == ImageState.READY

    @property
    def total(self) -> int:
        """Compressed bytes of the image; 0 while nobody knows its layers."""
        if self.manifest is not None:
            return self.manifest.size
        return sum(layer.size for layer in self.report.layers) if self.report else 0

    @property
    def done(self) -> int:
        """Compressed bytes that are on the node, downloaded now or held before."""
        if self.ready:
            return self.total
        if self.report is None:
            return 0
        layers = self.report.layers
        held = sum(layer.size if layer.state in HELD else min(layer.done, layer.size) for layer in layers)
        return min(held, self.total)

    def layer_states(self) -> Sequence[str]:
        """The states of the manifest's layers, in its order."""
        count = len(self.manifest.layers) if self.manifest else 0
        if self.report is not None and self.ready:
            letters = self.report.layer_states.ljust(count, LayerState.APPLIED.letter)
            return [LETTERS.get(letter, LayerState.APPLIED) for letter in letters[:count]]
        if self.report is not None and len(self.report.layers) == count:
            return [layer.state if layer.state in STATES else UNKNOWN for layer in self.report.layers]
        return [LayerState.WAITING] * count


UNKNOWN = "Unknown"
"""What a newer agent reports and this version has no name for."""
STATES = frozenset(LayerState)
HELD = frozenset(state.value for state in LayerState if state.held)
LETTERS = {state.letter: state.value for state in LayerState}


@dataclass(frozen=True, slots=True)
class NodeView:
    """A desired node. `reason` and `message` say why it fails or waits, where there is something to say."""

    node: str
    state: NodeState
    images: tuple[ImageOnNode, ...]
    reason: str = ""
    message: str = ""


def view(
    node: str,
    platform: str,
    admissions: Sequence[Admission],
    resolutions: Mapping[str, Resolution],
    reported: NodePrepull | None,
    *,
    agent_available: bool,
) -> NodeView:
    """What one desired node holds of an ImagePrepull's images."""
    reports = {(one.reference, one.digest): one for one in reported.status.images} if reported else {}
    images = []
    for admission in admissions:
        record = admission.image.record
        known = resolutions.get(record)
        manifest = known.platforms.get(platform) if known else None
        images.append(ImageOnNode(admission, reports.get((record, admission.digest)), manifest))
    return _judge(node, tuple(images), agent_available=agent_available)


def _judge(node: str, images: tuple[ImageOnNode, ...], *, agent_available: bool) -> NodeView:
    if all(image.ready for image in images):
        return NodeView(node, NodeState.READY, images)
    failed = next((image.report for image in images if image.state == ImageState.FAILED), None)
    if failed is not None:
        return NodeView(node, NodeState.FAILED, images, failed.reason or "Failed", failed.message)
    if not agent_available:
        # Nothing moves there; a report of work in progress is of the past.
        return NodeView(
            node, NodeState.WAITING, images, AGENT_UNAVAILABLE, "no agent is ready on this node; see its pod"
        )
    if any(image.state == ImageState.PULLING for image in images):
        return NodeView(node, NodeState.PULLING, images)
    # What a ready image has to say is no reason for others to wait.
    said = [image.report for image in images if image.report and not image.ready]
    trouble = next((report for report in said if report.reason), None)
    if trouble is not None:
        return NodeView(node, NodeState.WAITING, images, trouble.reason, trouble.message)
    return NodeView(node, NodeState.WAITING, images)


def detail(seen: NodeView) -> NodeDetail:
    """A node for `nodeDetails`: layers while an image is in work or failed, a letter per layer once it is ready."""
    return NodeDetail(
        node=seen.node, state=seen.state, images=[_image_detail(image, seen) for image in seen.images]
    )


def _image_detail(image: ImageOnNode, seen: NodeView) -> NodeImageDetail:
    name, report = image.admission.image.image, image.report
    if report is None or report.state == ImageState.ABSENT:
        unresolved = not image.admission.digest
        reason = NOT_RESOLVED if unresolved else ""
        if seen.reason == AGENT_UNAVAILABLE:
            reason = AGENT_UNAVAILABLE
        return NodeImageDetail(image=name, state=ImageState.WAITING, reason=reason)
    if image.ready:
        return NodeImageDetail(
            image=name, state=report.state, attempts=report.attempts, layer_states=report.layer_states
        )
    lost = seen.reason == AGENT_UNAVAILABLE
    return NodeImageDetail(
        image=name,
        state=report.state,
        reason=AGENT_UNAVAILABLE if lost else report.reason,
        message=seen.message if lost else report.message,
        attempts=report.attempts,
        # A text that is no time would make the API server refuse the whole status.
        next_attempt=report.next_attempt if clock.parse(report.next_attempt or "") else None,
        layers=[LayerDetail(state=layer.state, done=layer.done) for layer in report.layers],
    )
