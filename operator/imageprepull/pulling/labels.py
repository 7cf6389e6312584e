"""Names and labels that containerd's garbage collector, the CRI and we ourselves read. Pure.

The rules are containerd's: `core/images/mediatypes.go` (ChildGCLabels), `core/images/handlers.go`
(SetChildrenMappedLabels), `core/remotes/docker/handler.go` (AppendDistributionSourceLabel).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.manifest import Manifest
from imageprepull.runtime.labels import LABEL_LIMIT, SOURCE_PREFIX

LEASE = "imageprepull.io/lease"
LEASE_IMAGE = "imageprepull.io/image"
LEASE_PROCESS = "imageprepull.io/process"
MEMORY = "imageprepull.io/memory"
"""Of a lease that holds nothing and is no pull's (memory.py)."""
UNSYNCED = "imageprepull.io/unsynced"
MANAGED = "imageprepull.io/managed"
PINNED = "imageprepull.io/pinned"
EXTRACT = "extract-"
RESTORED = "restored"
"""As the value of `MANAGED`: a record in the place of one that somebody else had made, and that we had to delete."""
CRI_MANAGED = "io.cri-containerd.image"
CRI_PINNED = "io.cri-containerd.pinned"
UNCOMPRESSED = "containerd.io/uncompressed"

GC_CONTENT = "containerd.io/gc.ref.content."
GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."


def index_labels(children: Iterable[Descriptor]) -> dict[str, str]:
    """What keeps an index's children alive, all platforms included: an edge to nothing does no harm."""
    labels: dict[str, str] = {}
    manifests = others = 0
    for child in children:
        if child.is_manifest:
            labels[f"{GC_CONTENT}m.{manifests}"] = child.digest
            manifests += 1
        else:
            labels[f"{GC_CONTENT}{others}"] = child.digest
            others += 1
    return labels


def manifest_labels(manifest: Manifest, *, keep_layers: bool) -> dict[str, str]:
    """What keeps config and layers alive. Without `keep_layers` the layer blobs go with the lease."""
    labels = {f"{GC_CONTENT}config": manifest.config.digest}
    if keep_layers:
        labels |= {f"{GC_CONTENT}l.{number}": layer.digest for number, layer in enumerate(manifest.layers)}
    return labels


def config_labels(snapshotter: str, top_chain_id: str) -> dict[str, str]:
    """What keeps the snapshots alive; an image without layers has none."""
    return {f"{GC_SNAPSHOT}{snapshotter}": top_chain_id} if top_chain_id else {}


def source_label(domain: str, path: str, existing: Mapping[str, str]) -> dict[str, str]:
    """Where a blob came from, merged with what is known; empty when it is known already or would not fit."""
    hostname = domain.rsplit(":", 1)[0] if not domain.endswith("]") else domain
    key = f"{SOURCE_PREFIX}{hostname}"
    known = {repository for repository in existing.get(key, "").split(",") if repository}
    merged = ",".join(sorted(known | {path}))
    if path in known or len(key) + len(merged) > LABEL_LIMIT:
        return {}
    return {key: merged}


def ref_key(descriptor: Descriptor) -> str:
    """The name of a blob's ingest (`remotes.MakeRefKey`): with the same name a kubelet's pull waits for ours."""
    if descriptor.is_index:
        return f"index-{descriptor.digest}"
    if descriptor.is_manifest:
        return f"manifest-{descriptor.digest}"
    if descriptor.is_layer:
        return f"layer-{descriptor.digest}"
    return f"config-{descriptor.digest}"


def record_labels(
    *, pin: bool, existing: Mapping[str, str] | None, by_hand: bool = False, restored: bool = False
) -> dict[str, str]:
    """Labels of an image record that has `existing` ones; None: there is no such record yet.

    `MANAGED` marks only records that nobody had made before us, `PINNED` only pins that nobody had set. A pin of ours
    is given with its mark each time: a kubelet's pull may have taken both off since, and a pin without the mark would
    be taken for somebody else's, and stay for ever. One that was asked for `by_hand` is just that, a person's: no agent
    takes it away. `restored`: of an image that is somebody else's all the same.
    """
    labels = {CRI_MANAGED: "managed"}
    known = existing or {}
    if pin and by_hand:
        labels[CRI_PINNED] = "pinned"
        if PINNED in known:
            labels[PINNED] = ""  # taken off: the pin is the person's from now on.
    elif pin and (PINNED in known or CRI_PINNED not in known):
        labels |= {CRI_PINNED: "pinned", PINNED: "true"}
    if existing is None:
        labels[MANAGED] = RESTORED if restored else "true"
    return labels


def extract_key(chain_id: str) -> str:
    """A key for an active snapshot in containerd's own format (`snapshots.UnpackKeyFormat`), never used twice."""
    return f"{EXTRACT}{time.time_ns() % 1_000_000_000}-{secrets.token_urlsafe(3)} {chain_id}"
