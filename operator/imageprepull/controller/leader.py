"""What only the leader does: read ImagePrepulls, plan, resolve, write. Its loops share queues, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from imageprepull.controller import clock
from imageprepull.controller.dirty import Rate, work
from imageprepull.controller.events import Events
from imageprepull.controller.handlers import KopfThread
from imageprepull.controller.intake import PLAN
from imageprepull.controller.node_writer import NodeWriter
from imageprepull.controller.pins import PinNotices
from imageprepull.controller.planner import Planner
from imageprepull.controller.registries import own_holds
from imageprepull.controller.removals import Removals
from imageprepull.controller.resolve import Patience, Resolver
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.controller.status_writer import StatusWriter
from imageprepull.controller.ticker import Ticker
from imageprepull.controller.trust import object_missing
from imageprepull.controller.vouching import Vouching
from imageprepull.controller.world import Key
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS
from imageprepull.registry.client import RegistryClient

logger = structlog.get_logger(__name__)
SECOND_LIST = 10.0
"""Seconds after the first list: kopf's watch began somewhere in between, and what was deleted there is found."""
RESYNC_RETRY = 5.0
LOOK_AT_LOSS = 0.5
"""Seconds between two looks whether the API server was lost, after which nothing is written before a list."""
LOOK_AT_REST = 30.0
"""Seconds between two looks at what is there, while nothing is to be deleted."""
STATUS_WORKERS = 2
SPEC_BURST = 20


class Leader:
    """The loops. `listed` is the monotonic time of the last complete LIST of ImagePrepulls, 0 before it."""

    def __init__(
        self, api: ApiClient, registry: RegistryClient, standby: Standby, settings: OperatorSettings
    ) -> None:
        self.listed = 0.0
        self.beats: dict[str, float] = {}
        self._api = api
        self._standby = standby
        self._settings = settings
        world, queues, metrics = standby.world, standby.queues, standby.metrics
        lease = (settings.namespace, settings.lease_name)
        self._events = Events(api, identity=settings.identity, lease=lease, interval=settings.event_interval)
        patience = Patience(settings.resolve_timeout, settings.resolve_backoff, settings.resolve_backoff_most)
        self._resolver = Resolver(
            registry,
            on_change=lambda _: queues.plan.add(PLAN),
            patience=patience,
            parallel=settings.parallel_resolves,
            holds=lambda: own_holds((known.object for known in world.node_prepulls.values()), clock.now()),
        )
        self._planner = Planner(world, queues, self._resolver, metrics)
        self._nodes = NodeWriter(
            api,
            standby,
            Rate(settings.spec_writes_per_second, burst=SPEC_BURST),
        )
        self._statuses = StatusWriter(
            api,
            standby,
            self._resolver,
            self._events,
            interval=settings.status_interval,
            rate=Rate(settings.status_writes_per_second),
        )
        self.removals = Removals(
            api,
            standby,
            self._events,
            lease=lease,
            poll=min(1.0, settings.confirm_interval / 3),
        )
        self.vouching = Vouching(
            api,
            standby,
            takes_back=self._nodes.takes_back,
            poll=settings.lease_seconds / 6,
            rest=min(LOOK_AT_REST, settings.resync),
        )
        self._ticker = Ticker(
            api,
            world,
            standby.intake,
            self._statuses,
            metrics,
            namespace=settings.namespace,
            interval=settings.pace_interval,
            agent_timeout=settings.agent_timeout,
        )

    async def run(self) -> None:
        """Lead until cancelled."""
        queues = self._standby.queues
        kopf = KopfThread(self._settings.access, self._standby.intake.prepull_event)
        self._ticker.look_at_agents()
        self._standby.intake.on_pins_yielded = PinNotices(self._standby.world, self._events).tell
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kopf.run(), name="kopf")
            tasks.create_task(self._standby.trust.guard(self._settings.crd_interval), name="crds")
            # No plan before everything that exists was read once.
            await self._list_at_first()
            tasks.create_task(self._resync(), name="resync")
            tasks.create_task(self._resolver.run(), name="resolver")
            tasks.create_task(self._events.run(), name="events")
            tasks.create_task(self._ticker.run(), name="ticker")
            tasks.create_task(self.removals.run(), name="removals")
            tasks.create_task(self.vouching.run(), name="vouching")
            tasks.create_task(work(queues.prepulls, self._read, beat=self._beat("read")), name="read")
            tasks.create_task(work(queues.plan, self._planner.plan, beat=self._beat("plan")), name="plan")
            for _ in range(self._settings.spec_workers):
                tasks.create_task(work(queues.nodes, self._nodes.write, beat=self._beat("nodes")))
            for _ in range(STATUS_WORKERS):
                tasks.create_task(work(queues.statuses, self._statuses.write, beat=self._beat("statuses")))

    def _beat(self, name: str) -> Callable[[], None]:
        def beat() -> None:
            self.beats[name] = time.monotonic()

        return beat

    async def _read(self, key: Key) -> None:
        """Read one ImagePrepull by quorum GET."""
        namespace, name = key
        asked = time.monotonic()
        try:
            document = await self._api.get(IMAGEPREPULLS, name, namespace)
        except ApiError as error:
            if not object_missing(error, name):
                raise
            self._standby.intake.no_prepull(key, asked=asked)
        else:
            self._standby.intake.prepull(document, asked=asked)

    async def _list_at_first(self) -> None:
        while not self.listed:
            try:
                await self._list()
            except ApiError as error:
                self.vouching.unreadable = str(error)
                logger.warning("ImagePrepulls not listed", error=str(error))
                await asyncio.sleep(RESYNC_RETRY)

    async def _list(self) -> None:
        """A real LIST: what no event told is found here, and everything is looked at again."""
        standby = self._standby
        # Whoever means one of these is in the list.
        strays = standby.world.reported_strays()
        asked = time.monotonic()
        documents, _ = await self._api.list(IMAGEPREPULLS)
        found = [standby.intake.prepull(document, asked=asked) for document in documents]
        present = {known.key for known in found}
        referenced = standby.world.referenced()
        for key in standby.world.prepulls.keys() - present:
            standby.intake.no_prepull(key, asked=asked)
        # Who was read since is there as well.
        there = {known.uid for known in (*found, *standby.world.prepulls.values())}
        standby.witness.listed(there, referenced, asked=asked)
        if not standby.world.owners_cut():
            standby.witness.forget(referenced)
            standby.world.policies.forget(referenced)
        standby.world.strays = strays
        if standby.listed(asked):
            self._resolver.doubt()
        standby.queues.plan.add(PLAN)
        self.listed = time.monotonic()

    async def _resync(self) -> None:
        delay = min(SECOND_LIST, self._settings.resync)
        while True:
            await self._until_due(time.monotonic() + delay)
            try:
                await self._list()
                delay = self._settings.resync
            except ApiError as error:
                logger.warning("ImagePrepulls not listed", error=str(error))
                await asyncio.sleep(max(min(RESYNC_RETRY, self._settings.resync), error.retry_after or 0))
                delay = 0

    async def _until_due(self, end: float) -> None:
        while time.monotonic() < end and not self._standby.list_due():  # noqa: ASYNC110 - no event tells it.
            await asyncio.sleep(min(LOOK_AT_LOSS, max(0.0, end - time.monotonic())))
