"""What is asked of the pull and what it answers: the contract between the puller and its callers (agent, CLI)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference
from imageprepull.pulling.progress import LayerProgress
from imageprepull.resources.free_space import Amount

KeepBlobs = Literal["after", "before", "never"]
Sync = Literal["background", "before"]
Until = Literal["ready", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """One image for one snapshotter.

    `digest` is the top-level descriptor's; None means: ask the registry what the reference stands for.
    `keep_lease_on_failure` is the agent's choice: blobs, snapshots and spool survive for its next attempt, until
    `Puller.abandon` or `give_back`. `lease_labels` tell whose lease it is (`imageprepull.io/lease=<node or cli>`).
    `min_free`: what must stay free on the disks that are written to; None is what the kubelet's thresholds demand.
    `urgent` takes what the machine has, for a command or a gated node; else workers have a low priority and wait for
    the disk before they fill the page cache, since pods run beside them.
    `tag_once`: a tag that was given to this digest before, and that somebody has moved since, is left to them; agents ask
    so (given_tags.py).
    `by_hand`: the pin is a person's, which no agent takes away.
    `always` is read by callers only: it forbids them to skip the pull because the image is present.
    """

    reference: Reference
    platform: Platform
    snapshotter: str
    digest: str | None = None
    pin: bool = False
    by_hand: bool = False
    tag_once: bool = False
    keep_blobs: KeepBlobs = "after"
    sync: Sync = "background"
    keep_lease_on_failure: bool = False
    lease_labels: dict[str, str] = field(default_factory=dict)
    min_free: Amount | None = None
    urgent: bool = True
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOutcome:
    """An image that the node now holds. Seconds count from the start of the pull.

    `seconds_kept` is when the content store had the blobs too, or they were dropped; it and `seconds_done` are None
    while something still runs in the background (`until="ready"`).
    """

    digest: str
    config_digest: str
    layers: tuple[LayerProgress, ...]
    seconds_ready: float
    seconds_kept: float | None
    seconds_done: float | None
    bytes_downloaded: int
    bytes_by_host: dict[str, int]
    pinned: bool
