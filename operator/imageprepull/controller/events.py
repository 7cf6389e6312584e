"""Events on ImagePrepulls and on the operator's Lease: at most one per object, reason and ten minutes.

Told to `tell`, sent by `run`: an API server that refuses Events delays nothing else.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import structlog

from imageprepull.controller import clock
from imageprepull.controller.event_rules import Notice
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import EVENTS, IMAGEPREPULLS, LEASES, Kind
from imageprepull.resources.base import Metadata

logger = structlog.get_logger(__name__)
NOTE_LIMIT = 1000
"""Characters; the API allows 1,024 bytes."""
WAITING = 1000


class Events:
    """Events by `identity`; the same object and reason again only after `interval` seconds."""

    def __init__(self, api: ApiClient, *, identity: str, lease: tuple[str, str], interval: float) -> None:
        self._api = api
        self._identity = identity
        self._lease = lease
        self._interval = interval
        self._last: dict[tuple[str, str], float] = {}
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)

    def tell(self, prepull: Metadata, notice: Notice) -> None:
        """An Event on an ImagePrepull."""
        self._put(IMAGEPREPULLS, prepull.namespace, prepull.name, prepull.uid, notice)

    def on_lease(self, reason: str, message: str) -> None:
        """A Warning on the operator's Lease, for what concerns no single ImagePrepull."""
        namespace, name = self._lease
        self._put(LEASES, namespace, name, "", Notice("Warning", reason, message))

    def _put(self, kind: Kind, namespace: str, name: str, uid: str, notice: Notice) -> None:
        now = time.monotonic()
        self._last = {key: at for key, at in self._last.items() if now - at < self._interval}
        key = (f"{kind.plural}/{namespace}/{name}/{uid}", notice.reason)
        if key in self._last or self._waiting.full():
            return
        self._last[key] = now
        regarding = {"apiVersion": kind.api_version, "kind": kind.kind, "namespace": namespace, "name": name}
        self._waiting.put_nowait(
            {
                "metadata": {"name": f"{name[:200]}.{uuid.uuid4().hex[:12]}", "namespace": namespace},
                "eventTime": clock.micro(clock.now()),
                "reportingController": "imageprepull.io/operator",
                "reportingInstance": self._identity[:128],
                "action": notice.reason,
                "reason": notice.reason,
                "type": notice.type,
                "note": notice.message[:NOTE_LIMIT].encode()[:NOTE_LIMIT].decode(errors="ignore"),
                "regarding": regarding | ({"uid": uid} if uid else {}),
            }
        )

    async def run(self) -> None:
        """Send until cancelled; what is refused is logged and dropped."""
        while True:
            event = await self._waiting.get()
            try:
                await self._api.create(EVENTS, event, namespace=event["metadata"]["namespace"])
            except ApiError as error:
                logger.warning("event not written", reason=event["reason"], error=str(error))
