"""NodePrepull, one per node and named like it: spec by the operator alone, status by that node's agent alone."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from imageprepull.resources.base import Metadata, Model


class Desired(StrEnum):
    """What the operator wants of an image. A vanished entry means only: start nothing new, remove nothing."""

    PRESENT = "Present"
    PAUSED = "Paused"
    ABSENT = "Absent"


class OnRemoval(StrEnum):
    """What `Absent` asks for: take our pin away, or remove the image as well."""

    UNPIN = "Unpin"
    DELETE = "Delete"


class ImageState(StrEnum):
    """An image on one node."""

    WAITING = "Waiting"
    PULLING = "Pulling"
    READY = "Ready"
    FAILED = "Failed"
    PAUSED = "Paused"
    ABSENT = "Absent"


class LayerState(StrEnum):
    """A layer on one node. `Exists`: its chain was on the node before; nothing was downloaded for it."""

    WAITING = "Waiting"
    DOWNLOADING = "Downloading"
    DOWNLOADED = "Downloaded"
    EXTRACTING = "Extracting"
    EXTRACTED = "Extracted"
    APPLIED = "Applied"
    EXISTS = "Exists"
    FAILED = "Failed"

    @property
    def held(self) -> bool:
        """Whether the node holds the layer unpacked."""
        return self in (LayerState.APPLIED, LayerState.EXISTS)

    @property
    def letter(self) -> str:
        """The one letter that stands for the state in `layerStates` (`X` for Extracting, `T` for Extracted)."""
        return {"Extracting": "X", "Extracted": "T", "Downloading": "L", "Exists": "E"}.get(self, self[0])


class ImageLimits(Model, frozen=True, kw_only=True):
    """The strictest of the objects that name the image on this node."""

    parallel_images: int = 2
    parallel_downloads: int = 8
    max_download_bytes_per_second: int | None = None
    min_free_disk: str | None = None


class Retry(Model, frozen=True, kw_only=True):
    """Backoff of an image on this node, in attempts and seconds; a changed `nonce` asks for a try at once."""

    backoff_limit: int = 8
    max_backoff_seconds: int = 300
    stall_timeout_seconds: int = 180
    nonce: str = ""


class DesiredImage(Model, frozen=True, kw_only=True):
    """One image for this node. `owners` are `namespace/name/uid` of the ImagePrepulls that name it.

    `repair`: a value not seen before asks to compare a present image with its blobs.
    """

    reference: str
    digest: str
    state: Desired = Desired.PRESENT
    on_removal: OnRemoval = OnRemoval.UNPIN
    priority: int = 0
    owners: list[str] = []
    pin: bool = False
    gated: bool = False
    credential_ref: str = ""
    repair: str = ""
    limits: ImageLimits = ImageLimits()
    retry: Retry = Retry()

    @property
    def to_be_deleted(self) -> bool:
        """Whether the image is to go from the node, and not only its pin."""
        return self.state is Desired.ABSENT and self.on_removal is OnRemoval.DELETE


def wanted_digests(entries: Iterable[DesiredImage]) -> frozenset[str]:
    """What stays: an image is removed only when every entry with its digest says so."""
    return frozenset(entry.digest for entry in entries if not entry.to_be_deleted)


class ResolveRequest(Model, frozen=True, kw_only=True):
    reference: str
    nonce: str


class RegistryHold(Model, frozen=True, kw_only=True):
    """No request to `host` before `not_before` (RFC 3339)."""

    host: str
    not_before: str


class NodePrepullSpec(Model, frozen=True, kw_only=True):
    """`kubelet_without_pins`: the version of the node's kubelet, where its garbage collection ignores pins."""

    images: list[DesiredImage] = []
    resolve: list[ResolveRequest] = []
    registries: list[RegistryHold] = []
    kubelet_without_pins: str = ""


class Agent(Model, frozen=True, kw_only=True):
    """Who reports. `extraction` is the path that layers take (fast, portable or none), `extraction_reason` why."""

    version: str = ""
    runtime: str = ""
    snapshotter: str = ""
    extraction: str = ""
    extraction_reason: str = ""
    capabilities: list[str] = []


class Disk(Model, frozen=True, kw_only=True):
    """The file system that holds the snapshots, in bytes.

    `pressure`: some file system of the runtime is about to reach the kubelet's eviction threshold (`message` says
    which); nothing is pulled then, and our pins yield. `pins_yielded`: none is left.
    """

    capacity: int = 0
    available: int = 0
    pressure: bool = False
    pins_yielded: bool = False
    message: str = ""


class SourceBytes(Model, frozen=True, kw_only=True):
    host: str
    bytes: int


class PhaseSeconds(Model, frozen=True, kw_only=True):
    """Wall seconds of the last finished pull by phase; phases overlap, so they do not add up to `total`."""

    resolve: float = 0
    download: float = 0
    extract: float = 0
    total: float = 0


class LayerStatus(Model, frozen=True, kw_only=True):
    """One layer, in the manifest's order. `size` and `done` are compressed bytes."""

    digest: str
    size: int
    state: str
    done: int = 0


class NodeImageStatus(Model, frozen=True, kw_only=True):
    """One image as the agent sees it. `layers` while in work or failed; `layer_states` once ready.

    `repaired` is the last `repair` of the spec that was carried out, `repair_result` what came of it. `repair_reason`: why
    the image was not compared all the same, or what is broken stays. One of `NO_ROOM`, without `repaired`: it waits for
    room to be compared.
    """

    reference: str
    digest: str
    state: str
    reason: str = ""
    message: str = ""
    attempts: int = 0
    next_attempt: str | None = None
    pinned: bool = False
    seconds: PhaseSeconds | None = None
    bytes: list[SourceBytes] = []
    layers: list[LayerStatus] = []
    layer_states: str = ""
    repaired: str = ""
    repair_reason: str = ""
    repair_result: str = ""


class ResolvedReference(Model, frozen=True, kw_only=True):
    reference: str
    nonce: str
    digest: str = ""
    reason: str = ""


class RegistryStatus(Model, frozen=True, kw_only=True):
    host: str
    credential_ref: str = ""
    state: str = ""
    remaining: int | None = None
    window: int | None = None
    until: str | None = None


class ImageSummary(Model, omit_defaults=False, frozen=True, kw_only=True):
    """Counts of images by state, for printer columns."""

    ready: int = 0
    pulling: int = 0
    waiting: int = 0
    failed: int = 0


class StrayPin(Model, frozen=True, kw_only=True):
    """A record that carries a pin of ours and that no entry names: a reference, or an image ID where only that is left."""

    reference: str
    digest: str


class NodePrepullStatus(Model, frozen=True, kw_only=True):
    observed_generation: int = 0
    heartbeat: str | None = None
    agent: Agent | None = None
    disk: Disk | None = None
    summary: ImageSummary | None = None
    images: list[NodeImageStatus] = []
    images_omitted: int = 0
    layers_omitted: int = 0
    resolved: list[ResolvedReference] = []
    registries: list[RegistryStatus] = []
    stray_pins: list[StrayPin] = []


class NodePrepull(Model, frozen=True, kw_only=True):
    """The whole object as the API serves it."""

    metadata: Metadata
    spec: NodePrepullSpec = NodePrepullSpec()
    status: NodePrepullStatus = NodePrepullStatus()
