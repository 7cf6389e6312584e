"""What every replica does: follow the cluster. Nothing here writes."""

from __future__ import annotations

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
        self.informers = (
            Informer(api, NODES, on_change=self.intake.node, resync=settings.resync),
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

    def plan_stands(self) -> bool:
        """Whether the plan may be written: it is of ImagePrepulls that were listed since NodePrepulls were last out of sight.

        A backup may have been restored meanwhile. The older plan would write entries of objects into it that it has not,
        and they would be let go of as soon as these are missed: nobody ordered that.
        """
        return self.world.planned_of >= self.node_prepulls.regained

    def list_wanted(self) -> bool:
        """Whether to list ImagePrepulls now leads to a plan that stands."""
        return self.world.listed < self.node_prepulls.regained < inf

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
