"""Node reports back into an ImagePrepull's status. Pure; the status loop calls it, `bounds` gives it its size.

Everything is counted over all nodes; the details are left lazy (`Draft`), since what does not fit is never built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from imageprepull.controller import clock, retry_answer
from imageprepull.controller.aggregate_conditions import (
    ALL_NODES_READY,
    PULLING,
    Verdict,
    progressing,
    ready,
    refused,
    resolved,
    stamp,
)
from imageprepull.controller.aggregate_images import ImageDraft, draft_images
from imageprepull.controller.aggregate_node import Cluster, NodeState, NodeView, view
from imageprepull.controller.assign import Candidate, Choice
from imageprepull.controller.images import BadSpec
from imageprepull.controller.nodes import NodeFacts
from imageprepull.resources.base import Metadata
from imageprepull.resources.imageprepull import (
    ByteCounts,
    Failure,
    ImagePrepullStatus,
    NodeCounts,
    Skipped,
)

REASONS_SHOWN = 10


@dataclass(slots=True)
class Draft:
    """A status whose lists are not filled in yet: `head`, the images, and the nodes in the order of interest."""

    head: ImagePrepullStatus
    images: list[ImageDraft] = field(default_factory=list)
    views: list[NodeView] = field(default_factory=list)


def aggregate(
    candidate: Candidate, choice: Choice, cluster: Cluster, before: ImagePrepullStatus, now: datetime
) -> Draft:
    """The status of one ImagePrepull, with `before` for what is remembered in it: times, and Ready's latch."""
    generation = candidate.prepull.metadata.generation
    same = before.observed_generation == generation
    time = clock.rfc3339(now)
    started = (before.start_time if same else None) or time
    views = _views(choice, cluster)
    images = draft_images(candidate, choice, cluster.resolutions, views, cluster.nodes)
    skipped = {reason: len(nodes) for reason, nodes in choice.skipped.items()}
    resolved_verdict, blocked = resolved(images)
    targets = [seen for seen in views if _targeted(cluster.nodes[seen.node], started)] or views
    ready_verdict = ready(
        targets,
        desired=len(views),
        skipped=skipped,
        limit=candidate.prepull.spec.rollout.max_failed_nodes,
        agents=sum(seen.node not in cluster.agentless for seen in views),
    )
    unusable = any(image.unusable for image in images)
    if not resolved_verdict.status and (unusable or ready_verdict.reason == PULLING):
        # An image that fits no node stands on no node's list, so the nodes alone would look ready.
        ready_verdict = _retyped(resolved_verdict, type="Ready")
    ready_verdict = _latched(ready_verdict, before, generation)
    verdicts = [ready_verdict, *progressing(ready_verdict, blocked, views), resolved_verdict]
    counts = Counter(seen.state for seen in views)
    total = sum(image.total for seen in views for image in seen.images)
    done = sum(image.done for seen in views for image in seen.images)
    head = ImagePrepullStatus(
        observed_generation=generation,
        conditions=stamp(verdicts, generation, time, before.conditions),
        ready_nodes=f"{counts[NodeState.READY]}/{len(views)}",
        progress=_progress(total, done, counts[NodeState.READY], len(views)),
        nodes=NodeCounts(
            desired=len(views),
            ready=counts[NodeState.READY],
            pulling=counts[NodeState.PULLING],
            waiting=counts[NodeState.WAITING],
            failed=counts[NodeState.FAILED],
            skipped=sum(skipped.values()),
        ),
        bytes=ByteCounts(total=total, done=done),
        start_time=started,
        completion_time=_completed(ready_verdict, before, same=same, now=time),
        failures=_failures(views),
        skipped=_skipped(choice),
        retry=retry_answer.answer(candidate.prepull.metadata, before.retry, views, cluster, choice.skipped),
    )
    return Draft(head, images, sorted(views, key=_interest))


def aggregate_refused(
    metadata: Metadata, bad: BadSpec, before: ImagePrepullStatus, now: datetime
) -> ImagePrepullStatus:
    """The status of a spec that is not acted on: the last counts stay, since what was brought stays."""
    generation = metadata.generation
    return msgspec.structs.replace(
        before,
        observed_generation=generation,
        retry=retry_answer.refused(metadata, bad),
        conditions=stamp(refused(bad), generation, clock.rfc3339(now), before.conditions),
    )


def _views(choice: Choice, cluster: Cluster) -> list[NodeView]:
    return [
        view(
            name,
            str(cluster.nodes[name].platform),
            admissions,
            cluster.resolutions,
            cluster.reports.get(name),
            agent_available=name not in cluster.unavailable,
        )
        for name, admissions in choice.nodes.items()
        if name in cluster.nodes
    ]


def _targeted(node: NodeFacts, started: str) -> bool:
    """Whether a node existed when this generation was rolled out; a later one does not hold Ready back."""
    created, began = clock.parse(node.created), clock.parse(started)
    return created is None or began is None or created <= began


def _retyped(verdict: Verdict, *, type: str) -> Verdict:  # noqa: A002 - the field's name.
    """A verdict for another condition."""
    return Verdict(type, verdict.status, verdict.reason, verdict.message)


def _latched(verdict: Verdict, before: ImagePrepullStatus, generation: int) -> Verdict:
    if verdict.status:
        return verdict
    for condition in before.conditions:
        if condition.type == "Ready" and condition.status == "True":
            if condition.observed_generation != generation:
                return verdict
            return Verdict("Ready", True, ALL_NODES_READY, f"reached before; now {verdict.message}")
    return verdict


def _completed(verdict: Verdict, before: ImagePrepullStatus, *, same: bool, now: str) -> str | None:
    if not verdict.status:
        return None
    return (before.completion_time if same else None) or now


def _progress(total: int, done: int, ready_nodes: int, desired: int) -> str:
    """`bytes.done` of `bytes.total`, rounded down; 100% only when every node holds everything."""
    if not desired:
        return ""
    if ready_nodes == desired:
        return "100%"
    part = done * 100 // total if total else ready_nodes * 100 // desired
    return f"{min(part, 99)}%"


def _failures(views: Sequence[NodeView]) -> list[Failure]:
    """The most frequent reasons for which nodes fail or cannot go on, each with one node's own words."""
    troubled: dict[str, list[NodeView]] = {}
    for seen in views:
        if seen.reason:
            troubled.setdefault(seen.reason, []).append(seen)
    frequent = sorted(troubled.items(), key=lambda item: (-len(item[1]), item[0]))[:REASONS_SHOWN]
    return [
        Failure(reason=reason, count=len(nodes), example_node=example.node, message=example.message)
        for reason, nodes in frequent
        for example in (min(nodes, key=lambda seen: seen.node),)
    ]


def _skipped(choice: Choice) -> list[Skipped]:
    frequent = sorted(choice.skipped.items(), key=lambda item: (-len(item[1]), item[0]))[:REASONS_SHOWN]
    return [Skipped(reason=reason, count=len(nodes), example_node=min(nodes)) for reason, nodes in frequent]


ORDER = {state: place for place, state in enumerate(NodeState)}


def _interest(seen: NodeView) -> tuple[int, str]:
    return ORDER[seen.state], seen.node
