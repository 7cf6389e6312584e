"""Which nodes an ImagePrepull chooses, and why a chosen one is skipped. Pure; `assign` asks it for every pair.

The rules are a pod's (nodeSelector, nodeAffinity.required, tolerations) read as the DaemonSet controller reads
them: a NoSchedule taint keeps new work away but takes nothing back, a NoExecute taint takes the node out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imageprepull.controller.kubelets import ignores_pins
from imageprepull.oci.platform import Platform
from imageprepull.resources import bounds
from imageprepull.resources.imageprepull import (
    ImagePrepullSpec,
    LabelSelectorRequirement,
    NodeSelectorTerm,
    Toleration,
)
from imageprepull.resources.reasons import NODE_DISK_PRESSURE

DISK_PRESSURE_TAINT = "node.kubernetes.io/disk-pressure"
STARTUP_TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/imageprepull"
ALWAYS_TOLERATED = frozenset(
    {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/unschedulable",
        STARTUP_TAINT,
    }
)
# A node short of disk, memory or process IDs gets no images, whatever the object tolerates.
NEVER_TOLERATED = frozenset(
    {
        DISK_PRESSURE_TAINT,
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/pid-pressure",
    }
)
PASSING_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""Prefixes of the taints that controllers set for a node's condition, and take away with it."""
VIRTUAL_LABELS = {"type": "virtual-kubelet", "eks.amazonaws.com/compute-type": "fargate"}

UNTOLERATED_TAINT = "UntoleratedTaint"
NOT_LINUX = "NotLinux"
VIRTUAL_NODE = "VirtualNode"


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint; `effect` is NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What planning reads of a Node. Two equal facts lead to the same plan, so heartbeats change nothing.

    `kubelet_without_pins`: the kubelet's version, where its garbage collection ignores pins.
    """

    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    os: str = "linux"
    architecture: str = "amd64"
    created: str = ""
    disk_pressure: bool = False
    kubelet_without_pins: str = ""

    @property
    def platform(self) -> Platform:
        """The node's platform in normal form (arm without a variant is v7, as containerd assumes)."""
        return Platform(self.os, self.architecture).normalized()


def read_node(node: Mapping[str, Any]) -> NodeFacts:
    """The facts of a Node as the API serves it. Labels stand in until the kubelet has reported nodeInfo."""
    metadata = node["metadata"]
    labels = metadata.get("labels") or {}
    reported = (node.get("status") or {}).get("nodeInfo") or {}
    taints = (node.get("spec") or {}).get("taints") or ()
    kubelet = str(reported.get("kubeletVersion") or "")
    return NodeFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        labels=labels,
        taints=tuple(Taint(t["key"], t.get("value") or "", t.get("effect", "NoSchedule")) for t in taints),
        os=reported.get("operatingSystem") or labels.get("kubernetes.io/os") or "linux",
        architecture=reported.get("architecture") or labels.get("kubernetes.io/arch") or "amd64",
        created=metadata.get("creationTimestamp") or "",
        disk_pressure=_has_disk_pressure(node),
        kubelet_without_pins=bounds.cut(kubelet, bounds.VERSION) if ignores_pins(kubelet) else "",
    )


def _has_disk_pressure(node: Mapping[str, Any]) -> bool:
    """What the kubelet says; the taint that follows is the node controller's, and later."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(
        condition.get("type") == "DiskPressure" and condition.get("status") == "True"
        for condition in conditions
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an ImagePrepull's node choice takes a node.

    `named` is false when selector, affinity or a NoExecute taint rules the node out: what was there may be
    withdrawn. A named node with a `skip` reason gets nothing new and keeps what it has. `lasting`: a taint that was set
    on purpose keeps the object away, and not the node's condition alone.
    """

    named: bool
    skip: str = ""
    lasting: bool = False

    @property
    def admitted(self) -> bool:
        """Whether images may be brought here now."""
        return self.named and not self.skip


def judge(spec: ImagePrepullSpec, node: NodeFacts) -> Verdict:
    """Apply an ImagePrepull's node choice to one node."""
    if not matches(spec, node):
        return Verdict(named=False)
    if any(node.labels.get(key) == value for key, value in VIRTUAL_LABELS.items()):
        return Verdict(named=False, skip=VIRTUAL_NODE)
    if node.os != "linux":
        return Verdict(named=False, skip=NOT_LINUX)
    against = [taint for taint in node.taints if not tolerated(taint, spec.tolerations)]
    if any(taint.effect == "NoExecute" and taint.key not in NEVER_TOLERATED for taint in against):
        return Verdict(named=False, skip=UNTOLERATED_TAINT)
    lasting = not all(taint.key.startswith(PASSING_TAINTS) for taint in against)
    if node.disk_pressure or any(taint.key == DISK_PRESSURE_TAINT for taint in against):
        return Verdict(named=True, skip=NODE_DISK_PRESSURE, lasting=lasting)
    return Verdict(named=True, skip=UNTOLERATED_TAINT if against else "", lasting=lasting)


def matches(spec: ImagePrepullSpec, node: NodeFacts) -> bool:
    """Whether nodeSelector and nodeAffinity.required name the node, taints aside."""
    if any(node.labels.get(key) != value for key, value in spec.node_selector.items()):
        return False
    required = spec.node_affinity.required if spec.node_affinity else None
    return required is None or any(_term_matches(term, node) for term in required.node_selector_terms)


def _term_matches(term: NodeSelectorTerm, node: NodeFacts) -> bool:
    # As in Kubernetes, a term without any requirement matches no node.
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": node.name}
    return all(_requirement_holds(want, node.labels) for want in term.match_expressions) and all(
        _requirement_holds(want, fields) for want in term.match_fields
    )


def _requirement_holds(want: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(want.key)
    match want.operator:
        case "In":
            return value in want.values
        case "NotIn":
            return value not in want.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return value is not None and _compares(value, want.operator, want.values)
        case _:
            return False


def _compares(value: str, operator: str, bounds: list[str]) -> bool:
    try:
        number, bound = int(value), int(*bounds)
    except (TypeError, ValueError):
        return False
    return number > bound if operator == "Gt" else number < bound


def tolerated(taint: Taint, tolerations: list[Toleration]) -> bool:
    """Whether a taint lets images in: by itself, by a toleration, or because it is only a preference."""
    if taint.effect == "PreferNoSchedule":
        return True
    if taint.key in NEVER_TOLERATED:
        return False
    return taint.key in ALWAYS_TOLERATED or any(_tolerates(one, taint) for one in tolerations)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    # An empty key with Exists stands for every key.
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    return bool(toleration.key) and toleration.value == taint.value
