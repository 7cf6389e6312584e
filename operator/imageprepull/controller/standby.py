"""What every replica does: follow the cluster. Nothing here writes."""

from __future__ import annotations

from math import inf

import structlog

from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.metrics import Metrics
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.trust import Trust
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World
from imageprepull.kube.client import ApiClient
from imageprepull.kube.informer import Informer
from imageprepull.kube.kinds import NODEPREPULLS, NODES, PODS

logger = structlog.get_logger(__name__)


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
        self._planned_by = nodes, self.node_prepulls
        """What a plan is made of and written to, besides ImagePrepulls."""
        self._held_back = False

    def may_write(self) -> bool:
        """Whether the plan may be written: it is of ImagePrepulls that were listed since all else was last out of sight.

        A backup may have been restored meanwhile. An older plan would write entries into it of objects that it has not, and
        for Nodes that are not chosen in it. They would be let go of as soon as that is noticed: nobody ordered that.
        Who asks in vain has another one made, which marks every node.
        """
        if self._outdated():
            self._held_back = True
            return False
        return True

    def list_due(self) -> bool:
        """Whether to list ImagePrepulls now, for a plan that may be written. What else was lost is listed before, if it is time.

        Only when something was to be written: where each watch is cut early, nobody must list for each.
        """
        self._held_back = self._held_back and self._outdated()
        if not self._held_back:
            return False
        if self._regained == inf:
            self._list_what_was_lost()
            return False
        return self.world.listed < self._regained

    def listed(self, asked: float) -> bool:
        """All ImagePrepulls were listed, by a request that was sent at the monotonic time `asked`.

        Whether the API server was lost from sight since the plan was made: what else is remembered may be of no use then.
        """
        lost = self._outdated()
        if lost:
            # Of NodePrepulls that were deleted before the loss: a restored backup may know nothing of them either.
            self.world.leftover.clear()
        self.world.listed = asked
        return lost

    def _list_what_was_lost(self) -> None:
        lost = [one for one in self._planned_by if one.sight.regained == inf]
        # Together, or each loss would be two. One that is being listed is not asked for it over and over.
        if all(one.sight.answered_to and one.synced.is_set() for one in lost):
            logger.info(
                "the API server was lost from sight, nothing is written to nodes before all is listed"
            )
            for informer in self._planned_by:
                informer.start_over()

    def _outdated(self) -> bool:
        return self.world.planned_of < self._regained

    @property
    def _regained(self) -> float:
        return max(informer.sight.regained for informer in self._planned_by)

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
