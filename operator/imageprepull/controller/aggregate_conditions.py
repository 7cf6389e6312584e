"""The conditions of an ImagePrepull and the rule for Ready. Pure; used by `aggregate`.

kstatus reads Reconciling, Stalled and Ready; `kubectl wait` compares the observedGeneration of each condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imageprepull.controller.aggregate_images import ImageDraft
from imageprepull.controller.aggregate_node import AGENT_UNAVAILABLE, NodeState, NodeView
from imageprepull.controller.images import BadSpec
from imageprepull.resources.base import Condition

NO_MATCHING_NODES = "NoMatchingNodes"
NO_AGENTS = "NoAgents"
ALL_NODES_READY = "AllNodesReady"
TOO_MANY_NODES_FAILED = "TooManyNodesFailed"
PULLING = "Pulling"
RESOLVING = "Resolving"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its history."""

    type: str
    status: bool
    reason: str
    message: str


def allowed_failures(limit: int | str, nodes: int) -> int:
    """`maxFailedNodes` of so many nodes: a percentage is rounded down, so 10 % of 3 forgives nobody."""
    if isinstance(limit, int):
        return limit
    if limit.endswith("%"):
        return nodes * int(limit[:-1]) // 100
    return int(limit)


def ready(
    targets: Sequence[NodeView], *, desired: int, skipped: Mapping[str, int], limit: int | str, agents: int
) -> Verdict:
    """Whether all targeted nodes hold the images. `agents` counts desired nodes with a running agent."""
    if not desired:
        # Nodes that are all skipped are a finding, an empty pool is none.
        if skipped:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
            return Verdict(
                "Ready", False, "AllNodesSkipped", f"every chosen node is skipped: {why}; see status.skipped"
            )
        return Verdict("Ready", True, NO_MATCHING_NODES, "no node matches nodeSelector and nodeAffinity")
    return _judge(targets, desired=desired, limit=limit, agents=agents)


def _judge(targets: Sequence[NodeView], *, desired: int, limit: int | str, agents: int) -> Verdict:
    missing = [seen for seen in targets if seen.state is not NodeState.READY]
    failed = [seen for seen in missing if seen.state is NodeState.FAILED]
    held = f"{len(targets) - len(missing)} of {len(targets)} nodes hold all images"
    allowed = allowed_failures(limit, len(targets))
    if len(missing) == len(failed) <= allowed:
        forgiven = f"; {len(failed)} failed, rollout.maxFailedNodes allows {allowed}" if failed else ""
        return Verdict("Ready", True, ALL_NODES_READY, held + forgiven)
    if not agents:
        return Verdict(
            "Ready", False, NO_AGENTS, f"{desired} nodes are chosen, but no agent is ready on any of them"
        )
    if len(failed) > allowed:
        example = f"{failed[0].node}: {failed[0].reason}"
        return Verdict(
            "Ready",
            False,
            TOO_MANY_NODES_FAILED,
            f"{held}; {len(failed)} failed (for example {example}), rollout.maxFailedNodes allows {allowed}",
        )
    lost = [seen for seen in missing if seen.reason == AGENT_UNAVAILABLE]
    if lost and len(lost) == len(missing) - len(failed):
        return Verdict(
            "Ready",
            False,
            AGENT_UNAVAILABLE,
            f"{held}; no agent is ready on {len(lost)}, e.g. {lost[0].node}",
        )
    return Verdict("Ready", False, PULLING, held)


def resolved(images: Sequence[ImageDraft]) -> tuple[Verdict, Verdict | None]:
    """Whether every image of the spec has a digest, and what blocks one for good.

    An image with a digest needs the registry no more, unless its manifest turned out to be unusable.
    """
    troubled = [
        image
        for image in images
        if image.unusable
        or (image.line.reason and (not image.line.digest or (image.permanent and not image.everywhere)))
    ]
    if troubled:
        first = next((image for image in troubled if image.permanent or image.unusable), troubled[0])
        verdict = Verdict("Resolved", False, first.line.reason, f"{first.line.image}: {first.line.message}")
        return verdict, verdict if first.permanent or first.unusable else None
    pending = [image.line.image for image in images if not image.line.digest]
    if pending:
        message = f"{len(pending)} of {len(images)} images have no digest yet, e.g. {pending[0]}"
        return Verdict("Resolved", False, RESOLVING, message), None
    return Verdict("Resolved", True, "Resolved", f"{counted(len(images), 'image')} resolved"), None


def progressing(ready_verdict: Verdict, blocked: Verdict | None, views: Sequence[NodeView]) -> list[Verdict]:
    """Reconciling and Stalled: whether something moves by itself, or somebody has to act.

    `blocked` is why an image cannot be resolved for good; nodes that only wait for it do not move.
    """
    pulling = sum(seen.state is NodeState.PULLING for seen in views)
    moving = pulling + sum(seen.state is NodeState.WAITING for seen in views)
    if blocked is not None and not pulling and not ready_verdict.status:
        return [waits_for_somebody(), Verdict("Stalled", True, blocked.reason, blocked.message)]
    if moving:
        return [
            Verdict("Reconciling", True, "RollingOut", f"{counted(moving, 'node')} in work"),
            not_stalled(),
        ]
    if ready_verdict.status or not any(seen.state is NodeState.FAILED for seen in views):
        return [idle(), not_stalled()]
    return [waits_for_somebody(), Verdict("Stalled", True, ready_verdict.reason, ready_verdict.message)]


def refused(bad: BadSpec) -> list[Verdict]:
    """The conditions of a spec that is not acted on."""
    return [
        Verdict("Ready", False, bad.reason, bad.message),
        Verdict("Reconciling", False, bad.reason, "nothing is planned for this generation"),
        Verdict("Stalled", True, bad.reason, bad.message),
        Verdict("Resolved", False, bad.reason, "nothing is resolved for this generation"),
    ]


def idle() -> Verdict:
    """Nothing is going on."""
    return Verdict("Reconciling", False, "Idle", "nothing is left to do")


def not_stalled() -> Verdict:
    """Nobody has to act."""
    return Verdict("Stalled", False, "NotStalled", "nobody has to act")


def waits_for_somebody() -> Verdict:
    """Beside Stalled: slow tries go on, but nothing that could be waited for."""
    return Verdict("Reconciling", False, "Stalled", "nothing moves until the cause is mended; see Stalled")


def counted(number: int, thing: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def stamp(
    verdicts: Sequence[Verdict], generation: int, now: str, before: Sequence[Condition]
) -> list[Condition]:
    """Conditions with their history: `lastTransitionTime` is kept while `status` stays."""
    known = {condition.type: condition for condition in before}
    stamped = []
    for verdict in verdicts:
        status = "True" if verdict.status else "False"
        old = known.get(verdict.type)
        since = old.last_transition_time if old is not None and old.status == status else now
        stamped.append(
            Condition(
                type=verdict.type,
                status=status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return stamped
