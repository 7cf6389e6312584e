"""What every replica does: follow the cluster. Nothing here writes."""

from __future__ import annotations

import asyncio
from math import inf

from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.metrics import Metrics
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.trust import Trust
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World
from imageprepull.kube.client import ApiClient
from imageprepull.kube.informer import Informer
from imageprepull.kube.kinds import NODEPREPULLS, NODES, PODS


class Standby:
    """The caches and the informers that fill them."""

    def __init__(self, api: ApiClient, settings: OperatorSettings) -> None:
        self.metrics = Metrics()
        self.world = World()
        self.queues = Queues(settings.debounce)
        self.witness = Witness(interval=settings.confirm_interval)
        self.intake = Intake(self.world, self.queues, self.witness)
        self.trust = Trust(api)
        self.node_prepulls = Informer(
            api, NODEPREPULLS, on_change=self.intake.node_prepull, resync=settings.resync
        )
        nodes = Informer(api, NODES, on_change=self.intake.node, resync=settings.resync)
        self.informers = (
            nodes,
            self.node_prepulls,
            Informer(
                api,
                PODS,
                namespace=settings.agent_namespace,
                label_selector=settings.agent_selector,
                on_change=self.intake.agent_pod,
                resync=settings.resync,
            ),
        )
        self.trust.informers = self.informers
        self._written_by = nodes, self.node_prepulls
        """What a plan is made of, and what it is written to."""
        self.list_wanted = asyncio.Event()
        """ImagePrepulls shall be listed now."""

    def plan_stands(self) -> bool:
        """Whether the plan may be written: it is of ImagePrepulls that were listed since all else was last out of sight.

        A backup may have been restored meanwhile. An older plan would write entries into it of objects that it has not, and
        for Nodes that are not chosen in it. They would be let go of as soon as that is noticed: nobody ordered that.
        """
        return self.world.planned_of >= self._regained

    def want_plan(self) -> None:
        """Have listed again what was out of sight, and then ImagePrepulls, as far as that helps: a plan follows their list."""
        if self._regained < inf:
            if self.world.listed < self._regained:
                self.list_wanted.set()
            return
        lost = [one for one in self._written_by if one.regained == inf]
        # Together, or each loss would be two. One that is listed already is not listed over and over.
        if all(one.answered_to and one.synced.is_set() for one in lost):
            for informer in self._written_by:
                informer.start_over()

    @property
    def _regained(self) -> float:
        return max(informer.regained for informer in self._written_by)

    def start_over(self) -> None:
        """Read everything again: what is known may be newer than what is there, and no watch will ever say so."""
        for informer in self.informers:
            informer.start_over()
        for key in self.world.prepulls:
            self.queues.prepulls.add(key)

    async def synced(self) -> None:
        """Wait for every cache: a plan on an empty one would plan for nothing."""
        for informer in self.informers:
            await informer.synced.wait()
