"""The reading around `witness`: quorum GETs of suspected ImagePrepulls, and the brake on mass removals."""

from __future__ import annotations

import asyncio
import time

import structlog

from imageprepull.controller.events import Events
from imageprepull.controller.standby import Standby
from imageprepull.controller.trust import object_missing
from imageprepull.controller.witness import Held, Suspect
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS, LEASES

logger = structlog.get_logger(__name__)
APPROVAL = "imageprepull.io/approve-removals"
"""Annotation on the operator's Lease; its value is the token that the Event names."""
CRD_UID = "imageprepull.io/crd-uid"
"""Annotation on the operator's Lease: the CRD under which nothing was missing. Another one is a kind made anew."""


class Removals:
    """Checks suspects every `poll` seconds. `held` is what waits for an administrator."""

    def __init__(
        self, api: ApiClient, standby: Standby, events: Events, *, lease: tuple[str, str], poll: float
    ) -> None:
        self.held: Held | None = None
        self._api = api
        self._world = standby.world
        self._queues = standby.queues
        self._witness = standby.witness
        self._trust = standby.trust
        self._metrics = standby.metrics
        self._events = events
        self._lease = lease
        self._poll = poll
        self._noted = False

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            try:
                await self.check()
            except ApiError as error:
                logger.warning("removals not checked", error=str(error))
            await asyncio.sleep(self._poll)

    async def check(self) -> None:
        """Read what is due, and let go of what is gone."""
        before = self._witness.gone
        asked = time.monotonic()
        due = self._witness.due(asked)
        if due:
            answers = [(suspect, await self._exists(suspect)) for suspect in due]
            trusted = await self._trust.holds()
            for suspect, found in answers:
                self._witness.read(
                    suspect.uid, found=found, trusted=trusted, now=time.monotonic(), asked=asked
                )
        marks = await self._marks() if self._witness.waiting else {}
        self._hold(
            self._witness.release(
                alive=len(self._world.prepulls),
                approved=marks.get(APPROVAL, ""),
                remade=marks.get(CRD_UID, "") != self._trust.prepulls_uid,
            )
        )
        await self._note_crd()
        if self._witness.gone - before:
            self._mark(self._witness.gone - before)

    def _mark(self, uids: frozenset[str]) -> None:
        for name in self._world.node_prepulls.keys() | self._world.leftover.keys():
            entries = self._world.current(name)
            if any(owner.rpartition("/")[2] in uids for entry in entries for owner in entry.owners):
                self._queues.nodes.add(name)
        logger.info("image prepulls are gone, their images are let go", uids=sorted(uids))

    async def _exists(self, suspect: Suspect) -> bool:
        try:
            document = await self._api.get(IMAGEPREPULLS, suspect.name, suspect.namespace)
        except ApiError as error:
            if object_missing(error, suspect.name):
                return False
            raise
        return bool(document["metadata"]["uid"] == suspect.uid)

    async def _marks(self) -> dict[str, str]:
        namespace, name = self._lease
        lease = await self._api.get(LEASES, name, namespace)
        return dict(lease["metadata"].get("annotations") or {})

    async def _note_crd(self) -> None:
        """Once nothing is missing, what vanishes later vanished from this CRD."""
        if self._noted or self._witness.missing:
            return
        uid = self._trust.prepulls_uid
        if (await self._marks()).get(CRD_UID) != uid:
            namespace, name = self._lease
            body = {"metadata": {"annotations": {CRD_UID: uid}}}
            await self._api.merge_patch(LEASES, name, body, namespace=namespace)
        self._noted = True

    def _hold(self, held: Held | None) -> None:
        if held is not None and (self.held is None or held.token != self.held.token):
            message = f"{held}: annotate this Lease with {APPROVAL}={held.token}"
            logger.error("removals are held", count=held.count, known=held.known, token=held.token)
            self._events.on_lease("RemovalsHeld", message)
        self.held = held
        self._metrics.removals_held.set(held.count if held else 0)

    def problem(self) -> str | None:
        """A line for /readyz?verbose."""
        return f"{self.held} ({APPROVAL}={self.held.token})" if self.held else None
