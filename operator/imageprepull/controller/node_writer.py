"""Writes NodePrepull specs: what `render` says, when it differs from what stands there. Key: the node.

The only writer of that spec. Server-side apply with the resourceVersion that the decision was based on, so that a
stale decision is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from imageprepull.controller import clock
from imageprepull.controller.asked import Owners
from imageprepull.controller.dirty import Rate
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.older_crd import without
from imageprepull.controller.orders import InvalidOrder
from imageprepull.controller.registries import behind, ordered_holds, standing
from imageprepull.controller.render import Rendered, cut_short, done_removals, render, takes_back
from imageprepull.controller.repairs import (
    ANNOTATION,
    RepairOrder,
    end_of,
    ordered,
    read_order,
)
from imageprepull.controller.retries import handed_on
from imageprepull.controller.standby import Standby
from imageprepull.controller.strays import believed
from imageprepull.controller.trust import object_missing
from imageprepull.controller.world import KnownNodePrepull
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS, NODEPREPULLS
from imageprepull.resources.base import encode
from imageprepull.resources.nodeprepull import DesiredImage, NodePrepullSpec, RegistryHold

logger = structlog.get_logger(__name__)
FIELD_MANAGER = "imageprepull-operator"
CONFIRM_AGAIN = 5.0
"""Seconds until a withdrawal that could not be confirmed is looked at again."""


class NodeWriter:
    """Brings one node's NodePrepull up to date."""

    def __init__(self, api: ApiClient, standby: Standby, rate: Rate) -> None:
        self._api = api
        self._standby = standby
        self._world = standby.world
        self._queues = standby.queues
        self._witness = standby.witness
        self._trust = standby.trust
        self._follower = standby.node_prepulls
        self._writes = standby.metrics.writes.labels("NodePrepull")
        self._rate = rate

    async def write(self, name: str) -> None:
        """Write the node's spec if it is behind."""
        node = self._world.nodes.get(name)
        if node is None:
            # The garbage collector removes the NodePrepull of a node that is gone.
            return
        if not self._standby.may_write():
            # The next plan marks every node.
            return
        known = self._world.node_prepulls.get(name)
        if known is not None and known.node_uid != node.uid:
            # Of an earlier life of this node: neither its spec nor its status say anything about the new one.
            await self._delete(name, known)
            return
        planned_of = self._world.planned_of
        rendered = await self._decide(name)
        if rendered.confirm or rendered.unsure:
            # No event announces that a cache follows again, so the rest is asked for once more.
            self._queues.nodes.add(name, CONFIRM_AGAIN)
        if rendered.omitted:
            logger.error("more images than a NodePrepull holds", node=name, omitted=len(rendered.omitted))
        known = self._world.node_prepulls.get(name)
        order = _repair_order(known)
        images = self._retried(name, ordered(rendered.images, order))
        spec = known.object.spec if known else NodePrepullSpec()
        wanted = NodePrepullSpec(
            images=images,
            registries=self._holds() if images else [],
            # Nobody chose the node otherwise, and an object would only say which kubelet it has.
            kubelet_without_pins=node.kubelet_without_pins if images else "",
        )
        wanted = without(wanted, self._trust.lacking)
        if (wanted.images, wanted.kubelet_without_pins) == (
            spec.images,
            spec.kubelet_without_pins,
        ) and not behind(spec.registries, wanted.registries):
            if known is not None and ANNOTATION in known.object.metadata.annotations:
                await self._end_repair(name, known, order)
            return
        registries = standing(spec.registries, wanted.registries, clock.now())
        wanted = msgspec.structs.replace(wanted, registries=registries)
        await self._apply(node, known, wanted, planned_of=planned_of)

    async def _apply(
        self, node: NodeFacts, known: KnownNodePrepull | None, spec: NodePrepullSpec, *, planned_of: float
    ) -> None:
        name = node.name
        await self._rate.slot()
        # The API server may have been lost and all been planned anew, in the meantime; that plan has marked every node, too.
        if not self._standby.may_write() or self._world.planned_of != planned_of:
            self._rate.give_back()
            return
        body = _body(node, known, spec)
        try:
            document = await self._api.apply(
                NODEPREPULLS, name, body, field_manager=FIELD_MANAGER, force=True
            )
        except ApiError as error:
            if error.conflict and known is not None:
                await self._read_again(name)
            raise
        self._writes.inc()
        self._follower.answered(document)
        logger.info("node prepull written", node=name, images=len(spec.images))

    def takes_back(self, name: str) -> bool:
        """Whether a write that is due for the node takes back an order to delete that stands there.

        What else is due can wait without harm.
        """
        known = self._world.node_prepulls.get(name)
        if known is None or not self._world.may_mean(name, known.ordered):
            # There may be thousands of them, and to render costs several times this.
            return False
        return takes_back(self._world.current(name), self._render(name))

    async def _decide(self, name: str) -> Rendered:
        """What the spec should be. Whatever lets go of an image is confirmed first."""
        confirmed: frozenset[str] = frozenset()
        rendered = self._render(name)
        if rendered.confirm:
            confirmed = await self._confirm(rendered.confirm)
            rendered = self._render(name, confirmed)
        strays = self._strays(name)
        if strays and self._render(name, confirmed, strays) != rendered and await self._trust.holds():
            rendered = self._render(name, confirmed, self._strays(name))
        return rendered

    def _strays(self, name: str) -> frozenset[tuple[str, str]]:
        """Pins without an entry, when it is certain that every object that may mean one of them is in the plan."""
        known = self._world.node_prepulls.get(name)
        listed = self._world.strays.get(name)
        if known is None or not listed:
            return frozenset()
        return listed & believed(known.object) if self._complete() else frozenset()

    def _complete(self) -> bool:
        """Whether every object that exists is in the plan as it is, as far as anybody has heard."""
        return self._witness.settled and self._queues.prepulls.idle and self._world.all_planned

    def _render(
        self,
        name: str,
        confirmed: frozenset[str] = frozenset(),
        strays: frozenset[tuple[str, str]] = frozenset(),
    ) -> Rendered:
        known = self._world.node_prepulls.get(name)
        done = done_removals(known.object.status, known.object.metadata.generation) if known else set()
        current = self._world.current(name)
        owners = Owners(
            self._world.planned,
            self._world.choices,
            self._witness.gone,
            confirmed,
            self._world.policies.retaining,
            # Of all objects, and for no other entries.
            any(map(cut_short, current)) and self._complete(),
        )
        return render(name, current, owners, done, strays)

    def _retried(self, name: str, images: list[DesiredImage]) -> list[DesiredImage]:
        known = self._world.node_prepulls.get(name)
        orders = {
            order.nonce: order.entries(name, self._world.choices[uid].nodes.get(name, ()))
            for uid, order in self._world.retries.items()
            if uid in self._world.choices
        }
        return handed_on(
            images, self._world.current(name), known.object.status.images if known else (), orders
        )

    def _holds(self) -> list[RegistryHold]:
        statuses = (known.object.status for known in self._world.node_prepulls.values())
        return ordered_holds(statuses, clock.now())

    async def _confirm(self, uids: frozenset[str]) -> frozenset[str]:
        """The uids whose generation is still the one that was planned, by quorum GET (cause b)."""
        confirmed = set()
        for uid in uids:
            candidate = self._world.planned.get(uid)
            if candidate is None:
                continue
            metadata = candidate.prepull.metadata
            key = (metadata.namespace, metadata.name)
            try:
                document = await self._api.get(IMAGEPREPULLS, metadata.name, metadata.namespace)
            except ApiError as error:
                if not object_missing(error, metadata.name):
                    raise
                self._queues.prepulls.add(key)
                continue
            found = document["metadata"]
            now_planned = self._world.planned.get(uid)
            if (found["uid"], found["generation"]) == (uid, metadata.generation) and now_planned is candidate:
                confirmed.add(uid)
            else:
                self._queues.prepulls.add(key)
        if confirmed and not await self._trust.holds():
            return frozenset()
        return frozenset(confirmed)

    async def _read_again(self, name: str) -> None:
        """What it was decided on is not what stands there, and no event may ever say so.

        After a restored backup the watch finds the object as it had it, and what our own last write answered is gone.
        But what the watch tells while the answer is on its way may be newer, and is told once.
        """
        before = self._follower.cache.get(("", name))
        try:
            document = await self._api.get(NODEPREPULLS, name)
        except ApiError as error:
            if not object_missing(error, name):
                raise
            if self._follower.cache.get(("", name)) is before:
                self._follower.missing(("", name))
        else:
            if before is not None and self._follower.cache.get(("", name)) is before:
                self._follower.read(document)
            else:
                self._follower.answered(document)

    async def _end_repair(self, name: str, known: KnownNodePrepull, order: RepairOrder | None) -> None:
        """Take away an order that was carried out, or that cannot be."""
        if order is not None:
            end = end_of(order, known.object)
            if end is None:
                return
            logger.info("repair ended", node=name, order=str(order), why=end)
        await self._rate.slot()
        metadata = {
            "resourceVersion": known.object.metadata.resource_version,
            "annotations": {ANNOTATION: None},
        }
        self._follower.answered(await self._api.merge_patch(NODEPREPULLS, name, {"metadata": metadata}))
        self._writes.inc()

    async def _delete(self, name: str, known: KnownNodePrepull) -> None:
        logger.info("deleting the node prepull of an earlier node of this name", node=name)
        try:
            await self._api.delete(NODEPREPULLS, name, uid=known.object.metadata.uid)
        except ApiError as error:
            if not error.not_found:
                raise


def _repair_order(known: KnownNodePrepull | None) -> RepairOrder | None:
    if known is None:
        return None
    try:
        return read_order(known.object.metadata.annotations)
    except InvalidOrder as error:
        logger.warning("repair refused", node=known.object.metadata.name, error=str(error))
        return None


def _body(node: NodeFacts, known: KnownNodePrepull | None, spec: NodePrepullSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": node.name,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
    }
    if known is not None:
        metadata["resourceVersion"] = known.object.metadata.resource_version
    return {
        "apiVersion": NODEPREPULLS.api_version,
        "kind": NODEPREPULLS.kind,
        "metadata": metadata,
        # Written even when empty: the API server makes null of an applied object without fields, and refuses it.
        "spec": {"images": []} | encode(spec),
    }
