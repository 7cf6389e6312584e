"""What the API server tells this agent: its own NodePrepull and the pace, each watched by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from imageprepull.agent.pace import CONFIGMAP, Pace, pace_from
from imageprepull.kube.cache import Change
from imageprepull.kube.client import ApiClient
from imageprepull.kube.informer import Informer, Timings
from imageprepull.kube.kinds import CONFIGMAPS, NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import NodePrepull

logger = structlog.get_logger(__name__)


OnSpec = Callable[[NodePrepull | None, NodePrepull | None], None]
"""Hears (before, now); `now` is None when the object is gone."""


class SpecWatch:
    """The newest readable spec of this node's object. `on_spec` hears of every change of it."""

    def __init__(self, api: ApiClient, node_name: str, timings: Timings, on_spec: OnSpec) -> None:
        # By name: the API server indexes such watches, so that 5,000 agents cost one dispatch each.
        self.informer = Informer(
            api,
            NODEPREPULLS,
            field_selector=f"metadata.name={node_name}",
            on_change=self.take,
            timings=timings,
        )
        self.current: NodePrepull | None = None
        self.problem = ""
        self._on_spec = on_spec
        self._told = asyncio.Event()
        """Set for good by the first object that can be read, or that is gone."""

    async def known(self) -> None:
        """Return when the API server has said once what this node is to hold, or that nobody has chosen it.

        An object that cannot be read says something, and nobody knows what.
        """
        await self.informer.synced.wait()
        if self.informer.cache:
            await self._told.wait()

    def take(self, change: Change) -> None:
        """Bring one change in. Our own status writes come back as changes too and say nothing new."""
        if change.type == "deleted":
            old, self.current = self.current, None
            self._told.set()
            self._on_spec(old, None)
            return
        try:
            new = decode(NodePrepull, change.object)
        except msgspec.ValidationError as error:
            # An operator newer than this agent may write what we cannot read: the last readable spec stays.
            self.problem = f"cannot read the NodePrepull: {error}"
            logger.warning("cannot read the NodePrepull, keeping the last spec", error=str(error))
            return
        self.problem = ""
        old, self.current = self.current, new
        self._told.set()
        if (
            old is None
            or old.metadata.uid != new.metadata.uid
            or old.metadata.generation != new.metadata.generation
        ):
            self._on_spec(old, new)


class PaceWatch:
    """The cluster's reporting pace. Without the ConfigMap, or the right to read it, the defaults hold."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        timings: Timings,
        default: Pace,
        on_pace: Callable[[Pace], None],
    ) -> None:
        self.informer = Informer(
            api,
            CONFIGMAPS,
            namespace=namespace,
            field_selector=f"metadata.name={CONFIGMAP}",
            on_change=self.take,
            timings=timings,
        )
        self._default = default
        self._on_pace = on_pace

    def take(self, change: Change) -> None:
        """Bring one change in."""
        data = {} if change.type == "deleted" else change.object.get("data") or {}
        self._on_pace(pace_from(data, self._default))
