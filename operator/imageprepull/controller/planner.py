"""The plan loop: the world into `assign`, and its difference into marks on nodes and statuses."""

from __future__ import annotations

import time

import structlog

from imageprepull.controller import retries
from imageprepull.controller.assign import assign
from imageprepull.controller.intake import Queues
from imageprepull.controller.metrics import Metrics
from imageprepull.controller.resolve import Resolver
from imageprepull.controller.world import World

logger = structlog.get_logger(__name__)


class Planner:
    """Plans everything anew whenever an object, a node or a resolution changed."""

    def __init__(self, world: World, queues: Queues, resolver: Resolver, metrics: Metrics) -> None:
        self._world = world
        self._queues = queues
        self._resolver = resolver
        self._metrics = metrics

    async def plan(self, _: str) -> None:
        """One pass. No await between reading the world and writing the plan."""
        began = time.monotonic()
        world = self._world
        candidates = {
            known.uid: known.candidate for known in world.prepulls.values() if known.candidate is not None
        }
        images = [image for candidate in candidates.values() for image in candidate.images]
        for candidate in candidates.values():
            self._resolver.adopt(candidate.images, candidate.prepull.status)
        choices = assign(candidates.values(), world.nodes, self._resolver.resolutions)
        platforms = {str(world.nodes[name].platform) for choice in choices.values() for name in choice.nodes}
        self._resolver.want(images, platforms)
        world.planned, world.choices, world.planned_of = candidates, choices, world.listed
        world.retries = {}
        for uid, candidate in candidates.items():
            order = retries.standing(candidate.prepull)
            if order is not None:
                world.retries[uid] = order
                self._resolver.retry(
                    (image.record for image in candidate.images if order.reference in ("", image.record)),
                    order.nonce,
                )
        self._metrics.image_prepulls.set(len(world.prepulls))
        self._metrics.nodes.set(len(world.nodes))
        for name in world.nodes:
            self._queues.nodes.add(name)
        for known in world.prepulls.values():
            self._queues.statuses.add(known.key)
        self._metrics.plan_seconds.observe(time.monotonic() - began)
