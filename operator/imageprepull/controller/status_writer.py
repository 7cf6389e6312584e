"""Writes ImagePrepull statuses: what `aggregate` says, when it differs from what stands there. Key: the object.

A merge patch with the resourceVersion read: whole lists, explicit nulls, one writer. At most one write per object
and interval, and a rate over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import msgspec
import structlog

from imageprepull.controller import clock
from imageprepull.controller.aggregate import aggregate, aggregate_refused
from imageprepull.controller.aggregate_node import Cluster
from imageprepull.controller.bounds import clipped, fit
from imageprepull.controller.dirty import Rate
from imageprepull.controller.event_rules import notices
from imageprepull.controller.events import Events
from imageprepull.controller.resolve import Resolver
from imageprepull.controller.retries import is_over
from imageprepull.controller.standby import Standby
from imageprepull.controller.world import Key, KnownPrepull
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS
from imageprepull.resources.base import decode, encode
from imageprepull.resources.imageprepull import ImagePrepullStatus

logger = structlog.get_logger(__name__)
LARGE_CLUSTER = 1000
LARGE_INTERVAL = 15.0
FIELDS = tuple(field.encode_name for field in msgspec.structs.fields(ImagePrepullStatus))


class StatusWriter:
    """Brings one ImagePrepull's status up to date. `unavailable` and `agentless` are set by the ticker."""

    def __init__(
        self,
        api: ApiClient,
        standby: Standby,
        resolver: Resolver,
        events: Events,
        *,
        interval: float,
        rate: Rate,
    ) -> None:
        self.unavailable: Collection[str] = ()
        self.agentless: Collection[str] = ()
        self._api = api
        self._standby = standby
        self._world = standby.world
        self._queues = standby.queues
        self._resolver = resolver
        self._events = events
        self._metrics = standby.metrics
        self._interval = interval
        self._rate = rate
        self._written: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {}

    async def write(self, key: Key) -> None:
        """Write the object's status if it is behind and its turn has come."""
        known = self._world.prepulls.get(key)
        if known is None:
            return
        wait = self._wait(known.uid)
        if wait > 0:
            self._queues.statuses.add(key, wait)
            return
        # The turn comes first: what is written is the state at that moment, not from before the wait.
        await self._rate.slot()
        known = self._world.prepulls.get(key)
        status = self._status(known) if known is not None else None
        if known is None or status is None or not self._differs(known, status):
            self._rate.give_back()
            return
        if moves(known.prepull.status, status) and not self._standby.may_write():
            # A restored backup may say what was resolved when it was made. The next plan takes that over.
            self._rate.give_back()
            return
        await self._patch(known, status)

    def _wait(self, uid: str) -> float:
        large = len(self._world.nodes) > LARGE_CLUSTER
        interval = max(self._interval, LARGE_INTERVAL) if large else self._interval
        last = self._written.get(uid)
        return last[0] + interval - time.monotonic() if last else 0

    def _status(self, known: KnownPrepull) -> ImagePrepullStatus | None:
        """The status as it should be; None while the plan is behind the object."""
        before, now = known.prepull.status, clock.now()
        if known.bad is not None:
            refused: ImagePrepullStatus = clipped(
                aggregate_refused(known.prepull.metadata, known.bad, before, now)
            )
            return refused
        planned, choice = self._world.planned.get(known.uid), self._world.choices.get(known.uid)
        if planned is None or choice is None or planned.prepull.metadata.generation != known.generation:
            return None
        began = time.monotonic()
        cluster = Cluster(
            nodes=self._world.nodes,
            reports={name: one.object for name, one in self._reports()},
            resolutions=self._resolver.resolutions,
            unavailable=self.unavailable,
            agentless=self.agentless,
        )
        status = fit(aggregate(planned, choice, cluster, before, now))
        self._metrics.aggregate_seconds.observe(time.monotonic() - began)
        return status

    def _reports(self) -> list[tuple[str, Any]]:
        # A NodePrepull of an earlier node of the same name says nothing about this one.
        nodes = self._world.nodes
        return [
            (name, one)
            for name, one in self._world.node_prepulls.items()
            if name in nodes and nodes[name].uid == one.node_uid
        ]

    def _differs(self, known: KnownPrepull, status: ImagePrepullStatus) -> bool:
        document, observed = encode(status), encode(known.prepull.status)
        last = self._written.get(known.uid)
        # An older CRD drops fields that it lacks: what was written once and came back like this is not written again.
        return document != observed and (last is None or last[1:] != (document, observed))

    async def _patch(self, known: KnownPrepull, status: ImagePrepullStatus) -> None:
        document = encode(status)
        body = {
            "metadata": {"resourceVersion": known.resource_version},
            "status": {name: document.get(name) for name in FIELDS},
        }
        try:
            stored = await self._api.merge_patch(
                IMAGEPREPULLS, known.name, body, namespace=known.namespace, subresource="status"
            )
        except ApiError as error:
            if error.conflict or error.not_found:
                # Somebody changed it meanwhile: read it and decide anew.
                self._queues.prepulls.add(known.key)
                return
            raise
        self._metrics.writes.labels("ImagePrepull").inc()
        written = decode(ImagePrepullStatus, stored.get("status") or {})
        self._written[known.uid] = (time.monotonic(), document, encode(written))
        self._keep(known, written, stored["metadata"]["resourceVersion"])
        order = self._world.retries.get(known.uid)
        if order is not None and is_over(written.retry, order):
            del self._world.retries[known.uid]
        for notice in notices(known.prepull.status, written, known.prepull.spec):
            self._events.tell(known.prepull.metadata, notice)

    def _keep(self, known: KnownPrepull, status: ImagePrepullStatus, version: str) -> None:
        """Remember what was written, unless the object was read anew during the request."""
        if self._world.prepulls.get(known.key) is known:
            prepull = msgspec.structs.replace(known.prepull, status=status)
            answered = time.monotonic()
            self._world.prepulls[known.key] = known.with_status(prepull, version, answered=answered)

    def forget(self) -> None:
        """Drop what is remembered of objects that are gone."""
        alive = {known.uid for known in self._world.prepulls.values()}
        self._written = {uid: last for uid, last in self._written.items() if uid in alive}


def moves(before: ImagePrepullStatus, now: ImagePrepullStatus) -> bool:
    """Whether an image that had a digest has another one."""
    said = {image.image: image.digest for image in before.images if image.digest}
    return any(image.digest and said.get(image.image, image.digest) != image.digest for image in now.images)
