"""What only time tells: agents that stay away, and how fast agents may report. Every few seconds, on the leader."""

from __future__ import annotations

import asyncio

import structlog

from imageprepull.controller import clock
from imageprepull.controller.intake import Intake
from imageprepull.controller.metrics import Metrics
from imageprepull.controller.pace import CONFIGMAP, Pace, pace_for
from imageprepull.controller.status_writer import StatusWriter
from imageprepull.controller.world import World
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import CONFIGMAPS
from imageprepull.resources.nodeprepull import ImageState

logger = structlog.get_logger(__name__)


class Ticker:
    """Looks every `interval` seconds; an agent is lost after `agent_timeout` seconds without being ready."""

    def __init__(
        self,
        api: ApiClient,
        world: World,
        intake: Intake,
        statuses: StatusWriter,
        metrics: Metrics,
        *,
        namespace: str,
        interval: float,
        agent_timeout: float,
    ) -> None:
        self._api = api
        self._world = world
        self._intake = intake
        self._statuses = statuses
        self._metrics = metrics
        self._namespace = namespace
        self._interval = interval
        self._agent_timeout = agent_timeout
        self._told: Pace | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look_at_agents()
            self._statuses.forget()
            try:
                await self._tell_pace()
            except ApiError as error:
                logger.warning("pace not written", error=str(error))
            await asyncio.sleep(self._interval)

    def look_at_agents(self) -> None:
        """Mark the statuses of nodes whose agent went missing or came back."""
        lost, agentless = agents_lost(self._world, self._agent_timeout)
        changed = (lost ^ set(self._statuses.unavailable)) | (agentless ^ set(self._statuses.agentless))
        self._statuses.unavailable, self._statuses.agentless = lost, agentless
        for name in changed:
            self._intake.mark_node_statuses(name)

    async def _tell_pace(self) -> None:
        pulling = sum(
            any(image.state == ImageState.PULLING for image in known.object.status.images)
            for known in self._world.node_prepulls.values()
        )
        self._metrics.pulling.set(pulling)
        pace = pace_for(pulling=pulling, nodes=len(self._world.nodes))
        if pace == self._told:
            return
        try:
            found = await self._api.get(CONFIGMAPS, CONFIGMAP, self._namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            body = {"metadata": {"name": CONFIGMAP}, "data": pace.data()}
            await self._api.create(CONFIGMAPS, body, namespace=self._namespace)
        else:
            if (found.get("data") or {}) != pace.data():
                await self._api.merge_patch(
                    CONFIGMAPS, CONFIGMAP, {"data": pace.data()}, namespace=self._namespace
                )
        self._told = pace


def agents_lost(world: World, timeout: float) -> tuple[set[str], set[str]]:
    """Nodes without a ready agent for longer than `timeout` seconds, and all nodes without an agent at all.

    A node that never had a pod counts from when it was first seen like that.
    """
    now = clock.now()
    lost: set[str] = set()
    without: set[str] = set()
    for name in world.nodes:
        agent = world.agents.get(name)
        if agent is not None and agent.ready:
            continue
        if agent is None:
            without.add(name)
            since = world.agent_missing_since.setdefault(name, clock.rfc3339(now))
        else:
            since = agent.since
        began = clock.parse(since)
        if began is None or (now - began).total_seconds() > timeout:
            lost.add(name)
    return lost, without | lost
