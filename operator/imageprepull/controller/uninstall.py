"""Before the release goes: every node lets go of every image, and those that do not answer are named.

Run by cli/uninstall.py, in the chart's pre-delete hook. It stops the operator, which would order the images back,
and then orders in its place what the operator would order of a deleted object: Absent, never with Delete. Objects
and images stay; an operator that is installed again finds the objects and orders the images anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import structlog

from imageprepull.controller import clock
from imageprepull.controller.reading import read_node_prepull
from imageprepull.controller.render import done_removals
from imageprepull.controller.strays import believed, order_of
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import DEPLOYMENTS, JOBS, LEASES, NODEPREPULLS
from imageprepull.resources import bounds
from imageprepull.resources.base import encode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodePrepull, OnRemoval

logger = structlog.get_logger(__name__)
AT_ONCE = 8
SHORTEST = 5.0
NODES_PER_SECOND = 200
"""All NodePrepulls are listed again and again: so many are worth a second between two lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is uninstalled. `timeout` is for everything, in seconds; `poll` the shortest pause between two questions.

    It counts from the start of `job`, if there is one: that has a deadline, and this may be its second pod.
    """

    namespace: str
    deployment: str
    lease: str
    job: str = ""
    timeout: float = 100
    poll: float = 1


@dataclass(slots=True)
class Outcome:
    """Nodes that hold nothing for us any more, those that did not answer in time, and what went wrong on the way."""

    let_go: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def let_go_everywhere(api: ApiClient, release: Release, outcome: Outcome) -> None:
    """Order it and wait, and keep `outcome` up to date.

    What the API server refuses, or a node does not do, is noted there and never raised.
    """
    left = await _time_left(api, release)
    end = time.monotonic() + left
    try:
        async with asyncio.timeout(left):
            await _noting(outcome, "stop the operator", lambda: _stop_operator(api, release, end))
            while True:
                if await _noting(outcome, "order it", lambda: _one_round(api, outcome)):
                    return
                nodes = len(outcome.left) + len(outcome.let_go)
                await asyncio.sleep(max(release.poll, nodes / NODES_PER_SECOND))
    except TimeoutError:
        logger.warning("not all nodes have answered in time", left=len(outcome.left))


async def _time_left(api: ApiClient, release: Release) -> float:
    if not release.job:
        return release.timeout
    try:
        job = await api.get(JOBS, release.job, release.namespace)
    except ApiError as error:
        logger.warning("cannot read the job, counting from now", job=release.job, error=str(error))
        return release.timeout
    return time_left(job, release.timeout, clock.now())


def time_left(job: dict[str, Any], timeout: float, now: datetime) -> float:
    """Seconds of `timeout` that are left to a job's pod; enough to order it everywhere, whatever the clocks say."""
    started = clock.parse(str(job.get("status", {}).get("startTime") or ""))
    elapsed = (now - started).total_seconds() if started is not None else 0.0
    return min(timeout, max(timeout - elapsed, SHORTEST))


async def _noting(outcome: Outcome, what: str, work: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await work()
    except ApiError as error:
        problem = f"cannot {what}: {error}"
        if problem not in outcome.problems:
            outcome.problems.append(problem)
            logger.warning("refused", problem=problem)
        return False


async def _stop_operator(api: ApiClient, release: Release, end: float) -> bool:
    """Scale it away and wait until it leads no more; at most a third of the time, for it may be gone or hang."""
    try:
        await api.merge_patch(
            DEPLOYMENTS,
            release.deployment,
            {"spec": {"replicas": 0}},
            namespace=release.namespace,
            subresource="scale",
        )
    except ApiError as error:
        if not error.not_found:
            raise
    seen: tuple[str, float] = ("", 0.0)
    patience = time.monotonic() + (end - time.monotonic()) / 3
    while (now := time.monotonic()) < patience:
        try:
            lease = await api.get(LEASES, release.lease, release.namespace)
        except ApiError as error:
            if error.not_found:
                return True
            raise
        spec, version = lease.get("spec") or {}, str(lease["metadata"]["resourceVersion"])
        if seen[0] != version:
            seen = version, now
        # A leader that was killed releases nothing: its Lease is free when it was not renewed for its duration.
        if not spec.get("holderIdentity") or now >= seen[1] + float(spec.get("leaseDurationSeconds") or 0):
            return True
        await asyncio.sleep(release.poll)
    return False


async def _one_round(api: ApiClient, outcome: Outcome) -> bool:
    """Order it where it is not ordered, and see who has done it; whether all have."""
    try:
        documents, _ = await api.list(NODEPREPULLS)
    except ApiError as error:
        if error.not_found:
            # Without its CRD there is nobody to order anything.
            outcome.left.clear()
            return True
        raise
    found = [(document["metadata"]["name"], read_node_prepull(document)) for document in documents]
    done = {name for name, known in found if known is not None and has_let_go(known.object)}
    outcome.let_go = sorted(done)
    outcome.left = sorted(name for name, _ in found if name not in done)
    if not outcome.left:
        return True
    behind = [known.object for _, known in found if known is not None and not is_ordered(known.object)]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def order(prepull: NodePrepull) -> None:
        async with at_once:
            await _order(api, prepull)

    refused = [
        error
        for error in await asyncio.gather(*map(order, behind), return_exceptions=True)
        if error is not None
    ]
    if refused:
        raise refused[0]
    return False


async def _order(api: ApiClient, prepull: NodePrepull) -> None:
    metadata = prepull.metadata
    body: dict[str, Any] = {
        # Refused when it changed meanwhile: the next round looks again.
        "metadata": {"resourceVersion": metadata.resource_version},
        "spec": {"images": [encode(entry) for entry in let_go_spec(prepull)]},
    }
    try:
        await api.merge_patch(NODEPREPULLS, metadata.name, body)
    except ApiError as error:
        if not (error.conflict or error.not_found):
            raise


def let_go_of(entry: DesiredImage) -> DesiredImage:
    """The order for one image. A removal that was ordered and still waits is taken back as well: the agent is leaving."""
    return msgspec.structs.replace(entry, state=Desired.ABSENT, on_removal=OnRemoval.UNPIN, pin=False)


def let_go_spec(prepull: NodePrepull) -> list[DesiredImage]:
    """The orders for one node: for its entries, and for what is pinned there beside them, as far as there is room."""
    entries = [let_go_of(entry) for entry in prepull.spec.images]
    named = {(entry.reference, entry.digest) for entry in entries}
    return [*entries, *map(order_of, sorted(believed(prepull) - named))][: bounds.IMAGES]


def is_ordered(prepull: NodePrepull) -> bool:
    """Whether the node's spec says just that."""
    return prepull.spec.images == let_go_spec(prepull)


def has_let_go(prepull: NodePrepull) -> bool:
    """Whether the node's agent has said that it has done just that.

    A status that still names a pin beside the spec which the spec names by now is from before the agent listed the pins
    again: there may be more than a status has room for.
    """
    done = done_removals(prepull.status, prepull.metadata.generation)
    named = {(one.reference, one.digest) for one in prepull.spec.images}
    listed_before = any((stray.reference, stray.digest) in named for stray in prepull.status.stray_pins)
    return is_ordered(prepull) and named <= done and not listed_before
