"""The node's status from the agent's view of its images. Pure; the reporter decides when it is written.

Bounded by construction: strings and lists are cut by the schema's numbers, since one item too many makes the API
server reject everything. Over the soft size the layers of images in work go first (counted in `layersOmitted`), then
the letters of ready images, then messages are shortened, and only at the hard limit whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from imageprepull.agent.image import ImageView
from imageprepull.agent.strays import TURN
from imageprepull.pulling.progress import ImageProgress
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import (
    Agent,
    Disk,
    ImageState,
    ImageSummary,
    LayerState,
    LayerStatus,
    NodeImageStatus,
    NodePrepullStatus,
    PhaseSeconds,
    RegistryStatus,
    SourceBytes,
    StrayPin,
)

SOFT_BYTES = 16 * 1024
HARD_BYTES = 64 * 1024
SHORT_MESSAGE = 120
FEW_REGISTRIES = 8
_PIN_INEFFECTIVE = (
    "the image's records carry the pin, but the runtime does not tell the kubelet, whose garbage collection may take "
    "the image; containerd tells it from 1.6.24 and 1.7.5 on"
)
_PIN_IGNORED = (
    "the image is pinned, but the image garbage collection of this node's kubelet, {}, ignores pins and may take it; "
    "kubelets heed them from 1.25.14, 1.26.9, 1.27.6, 1.28.2 and 1.29 on"
)
_HELD_BY_DIGEST = (
    "two digests are wanted under this tag here, and the tag goes to {}, which has the higher priority or, among equals, "
    "sorts first; this one is held by its digest alone, and a pod that names the tag does not get it"
)
_TAG_MOVED = (
    "somebody else, such as a pod that always pulls, has moved the tag to {} on this node, where it is left; the digest "
    "that was resolved is held as such, and a pod that names the tag does not get it until the tag is resolved anew"
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a status says beside its heartbeat."""

    generation: int
    agent: Agent
    disk: Disk | None
    images: Sequence[ImageView]
    registries: Sequence[RegistryStatus] = ()
    stray_pins: Sequence[StrayPin] = ()
    kubelet_without_pins: str = ""
    """As in the spec."""


def build_status(
    report: Report, heartbeat: str, *, soft: int = SOFT_BYTES, hard: int = HARD_BYTES
) -> NodePrepullStatus:
    """At most `hard` bytes of JSON; at most `soft` as far as leaving details out can do it."""
    images = [image_status(view, report.kubelet_without_pins) for view in report.images]
    status = NodePrepullStatus(
        observed_generation=report.generation,
        heartbeat=heartbeat,
        agent=cut_agent(report.agent),
        disk=report.disk,
        summary=summary_of(images),
        images=images[: bounds.IMAGES],
        images_omitted=max(0, len(images) - bounds.IMAGES),
        layers_omitted=sum(max(0, layers_of(view) - bounds.LAYERS) for view in report.images),
        registries=list(report.registries[: bounds.REGISTRIES]),
        stray_pins=list(report.stray_pins[: bounds.STRAY_PINS]),
    )
    return shrink(status, soft, hard)


def image_status(view: ImageView, kubelet_without_pins: str = "") -> NodeImageStatus:
    """One line of the status, within the schema's bounds. `kubelet_without_pins` as in the spec."""
    state = view.state
    shown = view.backoff if state in (ImageState.WAITING, ImageState.FAILED, ImageState.PULLING) else None
    ready = state is ImageState.READY
    progress = view.progress
    reason, message = (shown.reason, shown.message) if shown else notice(view, kubelet_without_pins)
    if view.running and view.progress is not None and view.progress.note:
        reason, message = notice(view, kubelet_without_pins)
    if view.gate is not None and state in (ImageState.WAITING, ImageState.PAUSED):
        reason, message = view.gate.reason, view.gate.message
    return NodeImageStatus(
        reference=view.desired.reference[: bounds.REFERENCE],
        digest=view.desired.digest[: bounds.DIGEST],
        state=state.value,
        reason=bounds.cut(reason, bounds.REASON),
        message=bounds.cut(message, bounds.MESSAGE),
        attempts=shown.attempts if shown else 0,
        next_attempt=view.next_attempt if shown and not view.running else None,
        pinned=bool(view.held and view.held.pinned),
        seconds=phase_seconds(view.pulled.seconds) if view.pulled and ready else None,
        bytes=source_bytes(view.pulled.bytes_by_host if view.pulled and ready else {}),
        layers=[] if ready or progress is None else layer_statuses(progress),
        layer_states=letters(view) if ready else "",
        repaired=view.repaired,
        repair_reason=bounds.cut(view.repair_reason, bounds.REASON),
        repair_result=bounds.cut(view.repair_result, bounds.MESSAGE),
    )


def notice(view: ImageView, kubelet_without_pins: str = "") -> tuple[str, str]:
    """Reason and message of an image that has not failed, for what its users should know all the same."""
    if view.state is ImageState.READY and view.tag_means:
        return "HeldByDigest", _HELD_BY_DIGEST.format(view.tag_means)
    held = view.held
    if view.state is ImageState.READY and held and held.tag_means:
        return "HeldByDigest", _TAG_MOVED.format(held.tag_means)
    # One that was just taken away is being set again: it is the runtime that ignores it where it is on the records.
    if view.state is ImageState.READY and view.desired.pin and held and not held.pinned and not held.unmarked:
        return "PinIneffective", _PIN_INEFFECTIVE
    if view.state is ImageState.READY and view.desired.pin and kubelet_without_pins:
        return "PinIneffective", _PIN_IGNORED.format(kubelet_without_pins)
    here = view.state is ImageState.PULLING or (view.state is ImageState.READY and view.pulled is not None)
    if here and view.progress is not None and view.progress.note:
        return "LeftToRuntime", view.progress.note
    return "", ""


def layers_of(view: ImageView) -> int:
    """How many layers are known of an image."""
    return len(view.progress.layers) if view.progress else 0


def layer_statuses(progress: ImageProgress) -> list[LayerStatus]:
    """In the manifest's order."""
    return [
        LayerStatus(
            digest=layer.digest[: bounds.DIGEST], size=layer.size, state=layer.state.value, done=layer.done
        )
        for layer in progress.layers[: bounds.LAYERS]
    ]


def letters(view: ImageView) -> str:
    """A letter a layer: how this process brought it, or that all of it was there."""
    if view.progress is not None and view.pulled is not None:
        return "".join(layer.state.letter for layer in view.progress.layers)[: bounds.LAYERS]
    count = view.held.layers if view.held else 0
    return LayerState.EXISTS.letter * min(count, bounds.LAYERS)


def phase_seconds(seconds: dict[str, float]) -> PhaseSeconds:
    """Hundredths are enough for people, and keep numbers short."""
    known = {phase: round(max(0.0, seconds.get(phase, 0.0)), 2) for phase in PhaseSeconds.__struct_fields__}
    return PhaseSeconds(**known)


def source_bytes(by_host: dict[str, int]) -> list[SourceBytes]:
    """The hosts that sent most."""
    most = sorted(by_host.items(), key=lambda entry: (-entry[1], entry[0]))[: bounds.SOURCE_HOSTS]
    return [SourceBytes(host=host[: bounds.HOST], bytes=amount) for host, amount in most]


def summary_of(images: Sequence[NodeImageStatus]) -> ImageSummary:
    """Counts of all images, those left out included. Paused and absent ones are nobody's work."""
    counts = {
        state: sum(image.state == state for image in images)
        for state in (ImageState.READY, ImageState.PULLING, ImageState.WAITING, ImageState.FAILED)
    }
    return ImageSummary(
        ready=counts[ImageState.READY],
        pulling=counts[ImageState.PULLING],
        waiting=counts[ImageState.WAITING],
        failed=counts[ImageState.FAILED],
    )


def cut_agent(agent: Agent) -> Agent:
    """Within the schema's bounds: the runtime's version is whatever a vendor's build says."""
    return Agent(
        version=agent.version[:64],
        runtime=agent.runtime[:128],
        snapshotter=agent.snapshotter[:64],
        extraction=agent.extraction[:64],
        extraction_reason=bounds.cut(agent.extraction_reason, 256),
        capabilities=[capability[:64] for capability in agent.capabilities[: bounds.CAPABILITIES]],
    )


def shrink(status: NodePrepullStatus, soft: int, hard: int) -> NodePrepullStatus:
    """Leave out details until it fits; what matters least and is biggest first."""
    excess = size_of(status) - soft
    if excess <= 0:
        return status
    images = list(status.images)
    omitted = status.layers_omitted
    few = msgspec.structs.replace(
        status,
        registries=status.registries[:FEW_REGISTRIES],
        # The others have their turn.
        stray_pins=status.stray_pins[:TURN],
    )
    excess -= size_of(status) - size_of(few)
    status = few
    # Failed images' layers first: they do not move any more.
    order = sorted(range(len(images)), key=lambda i: (images[i].state != ImageState.FAILED, -i))
    for index in order:
        image = images[index]
        if excess <= 0:
            break
        if image.layers:
            slim = msgspec.structs.replace(image, layers=[])
            excess -= size_of(image) - size_of(slim)
            omitted += len(image.layers)
            images[index] = slim
    for index in reversed(range(len(images))):
        if excess <= 0:
            break
        slim = msgspec.structs.replace(
            images[index], layer_states="", message=bounds.cut(images[index].message, SHORT_MESSAGE)
        )
        excess -= size_of(images[index]) - size_of(slim)
        images[index] = slim
    status = msgspec.structs.replace(status, images=images, layers_omitted=omitted)
    gone = 0
    excess = size_of(status) + len(',"imagesOmitted":256') - hard
    while excess > 0 and images:
        # The omission is counted; ready ones carry the least news.
        victim = next((i for i in reversed(range(len(images))) if images[i].state == ImageState.READY), -1)
        excess -= size_of(images.pop(victim)) + 1
        gone += 1
    return msgspec.structs.replace(status, images=images, images_omitted=status.images_omitted + gone)


def size_of(model: msgspec.Struct) -> int:
    """Bytes of its JSON."""
    return len(msgspec.json.encode(model))


def patch_of(status: NodePrepullStatus) -> dict[str, object]:
    """The merge patch that makes the object's status exactly this one: lists whole, and null for what it lacks.

    Without the nulls a field once written would stay for ever. Nested objects are merged too, so theirs are nulled.
    """
    body: dict[str, object] = dict.fromkeys(NodePrepullStatus.__struct_encode_fields__)
    body |= msgspec.to_builtins(status)
    for name, value in (("agent", status.agent), ("disk", status.disk), ("summary", status.summary)):
        if value is not None:
            body[name] = dict.fromkeys(value.__struct_encode_fields__) | msgspec.to_builtins(value)
    for name in ("observedGeneration", "images", "imagesOmitted", "layersOmitted"):
        if body[name] is None:
            body[name] = [] if name == "images" else 0
    return {"status": body}


def same_news(one: NodePrepullStatus, other: NodePrepullStatus) -> bool:
    """Whether two statuses differ in nothing that is worth a write; free disk moves all the time."""
    return bare(one) == bare(other)


def bare(status: NodePrepullStatus) -> NodePrepullStatus:
    """Without what only the heartbeat brings."""
    disk = status.disk
    # How many requests are left changes with each of them; that none is left shows in the state.
    registries = [msgspec.structs.replace(registry, remaining=None) for registry in status.registries]
    if disk is not None:
        disk = msgspec.structs.replace(disk, capacity=0, available=0)
    return msgspec.structs.replace(
        status, heartbeat=None, disk=disk if disk != Disk() else None, registries=registries
    )


def verdict_of(status: NodePrepullStatus) -> str:
    """The node as a whole: ready, failed, short of disk, or neither yet. Its change is reported at once."""
    if status.disk is not None and status.disk.pressure:
        return "pressure"
    summary = status.summary or ImageSummary()
    if summary.pulling or summary.waiting:
        return "working"
    if summary.failed:
        return "failed"
    return "ready"
