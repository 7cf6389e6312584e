"""API documents as the world knows them, whatever they say: what this version cannot read is refused, or left alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from imageprepull.controller.assign import Candidate
from imageprepull.controller.images import BadSpec, read_images
from imageprepull.controller.world import AgentPod, KnownNodePrepull, KnownPrepull
from imageprepull.resources.base import Metadata, decode
from imageprepull.resources.imageprepull import ImagePrepull, ImagePrepullSpec, ImagePrepullStatus
from imageprepull.resources.nodeprepull import NodePrepull

logger = structlog.get_logger(__name__)


def read_prepull(document: dict[str, Any], asked: float) -> KnownPrepull:
    """An ImagePrepull, whatever its spec: one that this version cannot read is refused, not forgotten."""
    metadata = decode(Metadata, document["metadata"])
    bad: BadSpec | None = None
    try:
        spec = decode(ImagePrepullSpec, document.get("spec") or {})
    except msgspec.ValidationError as error:
        spec, bad = ImagePrepullSpec(), BadSpec("InvalidSpec", f"this version cannot read the spec: {error}")
    try:
        status = decode(ImagePrepullStatus, document.get("status") or {})
    except msgspec.ValidationError as error:
        logger.warning("status unreadable, written anew", prepull=metadata.name, error=str(error))
        status = ImagePrepullStatus()
    prepull = ImagePrepull(metadata=metadata, spec=spec, status=status)
    images = bad or read_images(spec)
    candidate = None
    if isinstance(images, BadSpec):
        bad = images
    else:
        candidate = Candidate(prepull, images)
    return KnownPrepull(
        metadata.namespace,
        metadata.name,
        metadata.uid,
        metadata.generation,
        metadata.resource_version,
        prepull,
        candidate,
        bad,
        asked,
        time.monotonic(),
    )


def read_node_prepull(document: dict[str, Any]) -> KnownNodePrepull | None:
    """A NodePrepull; None (and a log line) when a newer version wrote what this one cannot read."""
    owners = document["metadata"].get("ownerReferences") or ()
    node_uid = next((owner["uid"] for owner in owners if owner.get("kind") == "Node"), "")
    try:
        return KnownNodePrepull(decode(NodePrepull, document), node_uid)
    except msgspec.ValidationError as error:
        logger.warning("NodePrepull unreadable", node=document["metadata"]["name"], error=str(error))
        return None


def read_agent(pod: Mapping[str, Any]) -> tuple[str, AgentPod]:
    """The node of an agent's pod, and whether it is ready since when."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready":
            ready = condition.get("status") == "True" and "deletionTimestamp" not in pod["metadata"]
            return node_of(pod), AgentPod(ready, condition.get("lastTransitionTime") or "")
    return node_of(pod), AgentPod(ready=False, since=pod["metadata"].get("creationTimestamp") or "")


def node_of(pod: Mapping[str, Any]) -> str:
    """The node a pod is bound to; a DaemonSet's pod that is not scheduled yet names it in its affinity only."""
    return str((pod.get("spec") or {}).get("nodeName") or "")
