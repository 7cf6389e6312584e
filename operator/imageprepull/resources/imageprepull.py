"""ImagePrepull, the object that a team applies: spec by the user, status by the operator alone."""

from __future__ import annotations

from enum import StrEnum

from imageprepull.resources.base import Condition, Metadata, Model


class PullPolicy(StrEnum):
    """`Always` follows the tag; `IfNotPresent`, the default, resolves it once."""

    IF_NOT_PRESENT = "IfNotPresent"
    ALWAYS = "Always"


class CompletionMode(StrEnum):
    CONTINUOUS = "Continuous"
    ONCE = "Once"


class PinPolicy(StrEnum):
    WHILE_REFERENCED = "WhileReferenced"
    NEVER = "Never"


class DeletionPolicy(StrEnum):
    RETAIN = "Retain"
    DELETE = "Delete"


class ImageEntry(Model, frozen=True, kw_only=True):
    """One image as a pod's container names it. An absent `pull_policy` means IfNotPresent."""

    image: str
    pull_policy: PullPolicy | None = None


class LabelSelectorRequirement(Model, frozen=True, kw_only=True):
    key: str
    operator: str
    values: list[str] = []


class LabelSelector(Model, frozen=True, kw_only=True):
    match_labels: dict[str, str] = {}
    match_expressions: list[LabelSelectorRequirement] = []


class ImageSource(Model, frozen=True, kw_only=True):
    """A workload whose images are taken: exactly one of `name` and `selector`."""

    kind: str
    api_group: str = ""
    name: str | None = None
    selector: LabelSelector | None = None


class NodeSelectorTerm(Model, frozen=True, kw_only=True):
    """As in a pod: all expressions and fields must match."""

    match_expressions: list[LabelSelectorRequirement] = []
    match_fields: list[LabelSelectorRequirement] = []


class NodeSelector(Model, frozen=True, kw_only=True):
    """One matching term is enough."""

    node_selector_terms: list[NodeSelectorTerm]


class NodeAffinity(Model, frozen=True, kw_only=True):
    required: NodeSelector | None = None


class Toleration(Model, frozen=True, kw_only=True):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class SecretReference(Model, frozen=True, kw_only=True):
    name: str


class Rollout(Model, frozen=True, kw_only=True):
    """How fast nodes are let in; counts or percentages. Absent `max_parallel_nodes` adapts."""

    max_parallel_nodes: int | str | None = None
    seed_nodes: int = 0
    max_failed_nodes: int | str = "10%"


class Limits(Model, frozen=True, kw_only=True):
    """What one node may spend on this object. Sizes are bytes or Quantities."""

    parallel_images: int = 2
    parallel_downloads: int = 8
    max_download_bytes_per_second: int | str | None = None
    min_free_disk: int | str | None = None


class ImagePrepullSpec(Model, frozen=True, kw_only=True):
    images: list[ImageEntry] = []
    images_from: list[ImageSource] = []
    node_selector: dict[str, str] = {}
    node_affinity: NodeAffinity | None = None
    tolerations: list[Toleration] = []
    image_pull_secrets: list[SecretReference] = []
    service_account_name: str = "default"
    priority: int = 0
    completion_mode: CompletionMode = CompletionMode.CONTINUOUS
    rollout: Rollout = Rollout()
    limits: Limits = Limits()
    backoff_limit: int = 8
    max_backoff_seconds: int = 300
    stall_timeout_seconds: int = 180
    active_deadline_seconds: int | None = None
    refresh_interval_seconds: int | None = None
    pin_policy: PinPolicy = PinPolicy.WHILE_REFERENCED
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    ttl_seconds_after_finished: int | None = None
    suspend: bool = False


class NodeCounts(Model, omit_defaults=False, frozen=True, kw_only=True):
    """`desired` = ready + pulling + waiting + failed; skipped nodes stand beside it."""

    desired: int = 0
    ready: int = 0
    pulling: int = 0
    waiting: int = 0
    failed: int = 0
    skipped: int = 0


class ByteCounts(Model, omit_defaults=False, frozen=True, kw_only=True):
    """Compressed bytes over all desired nodes. Layers that a node already held count as done."""

    total: int = 0
    done: int = 0


class LayerSummary(Model, frozen=True, kw_only=True):
    """One layer of the manifest; `nodes` counts desired nodes by layer state."""

    digest: str
    size: int
    nodes: dict[str, int] = {}


class PlatformImage(Model, frozen=True, kw_only=True):
    """What an image is on one platform (`linux/amd64`). `size` sums the compressed layers, in bytes."""

    platform: str
    manifest: str
    config: str
    size: int
    layers: list[LayerSummary] = []
    layers_omitted: int = 0


class ImageStatus(Model, frozen=True, kw_only=True):
    """One image of the spec, resolved. Without `digest` it could not be: `reason` and `message` say why."""

    image: str
    digest: str = ""
    reason: str = ""
    message: str = ""
    nodes_ready: int = 0
    platforms: list[PlatformImage] = []


class Failure(Model, frozen=True, kw_only=True):
    """One reason for which nodes failed, with one of them as an example."""

    reason: str
    count: int
    example_node: str = ""
    message: str = ""


class Skipped(Model, frozen=True, kw_only=True):
    """Nodes that were chosen but cannot hold the images, by reason."""

    reason: str
    count: int
    example_node: str = ""


class RetryStatus(Model, omit_defaults=False, frozen=True, kw_only=True):
    """What came of the last order of `kubectl image-prepull retry`, whose word is `nonce`.

    Nodes that it concerns, by what became of the images that it concerns. Over when none is `waiting`: on those that
    are `blocked`, waiting would not bring an answer (no room, or no report). `reason` and `message` are those of
    `example_image` on `example_node`, or say why nothing could be done; `nonce` is "" when it was not readable.
    """

    nonce: str = ""
    ready: int = 0
    waiting: int = 0
    failed: int = 0
    blocked: int = 0
    example_node: str = ""
    example_image: str = ""
    reason: str = ""
    message: str = ""


class LayerDetail(Model, frozen=True, kw_only=True):
    """A layer on one node, in the manifest's order; `done` is the bytes downloaded."""

    state: str
    done: int = 0


class NodeImageDetail(Model, frozen=True, kw_only=True):
    """An image on one node. `layers` while it is in work; `layer_states`, a letter a layer, once it is ready."""

    image: str
    state: str
    reason: str = ""
    message: str = ""
    attempts: int = 0
    next_attempt: str | None = None
    layers: list[LayerDetail] = []
    layer_states: str = ""


class NodeDetail(Model, frozen=True, kw_only=True):
    node: str
    state: str
    images: list[NodeImageDetail] = []


class ImagePrepullStatus(Model, frozen=True, kw_only=True):
    """Bounded by construction (design: 16 KiB aimed at, 64 KiB at most); the `*_omitted` say what was left out."""

    observed_generation: int = 0
    conditions: list[Condition] = []
    ready_nodes: str = ""
    progress: str = ""
    nodes: NodeCounts | None = None
    bytes: ByteCounts | None = None
    start_time: str | None = None
    completion_time: str | None = None
    failures: list[Failure] = []
    skipped: list[Skipped] = []
    images: list[ImageStatus] = []
    images_omitted: int = 0
    node_details: list[NodeDetail] = []
    nodes_omitted: int = 0
    retry: RetryStatus | None = None


class ImagePrepull(Model, frozen=True, kw_only=True):
    """The whole object as the API serves it."""

    metadata: Metadata
    spec: ImagePrepullSpec
    status: ImagePrepullStatus = ImagePrepullStatus()
