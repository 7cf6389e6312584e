"""Introspection: which plug-ins the runtime has, and what they say about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imageprepull.runtime.protos import introspection_pb2 as pb
from imageprepull.runtime.rpc import Rpc


@dataclass(frozen=True, slots=True)
class Plugin:
    """`failure` is why a plug-in did not start, "" for one that runs."""

    type: str
    id: str
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    failure: str = ""


def _plugin(message: pb.Plugin) -> Plugin:
    return Plugin(
        message.type,
        message.id,
        dict(message.exports),
        frozenset(message.capabilities),
        message.init_err.message,
    )


class Introspection:
    """The introspection service."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def plugins(self, filters: Sequence[str] = ()) -> list[Plugin]:
        """The plug-ins that match any of the filters (`type==io.containerd.snapshotter.v1,id==overlayfs`)."""
        answer = await self._rpc.unary(
            "/containerd.services.introspection.v1.Introspection/Plugins",
            pb.PluginsRequest(filters=filters),
            pb.PluginsResponse,
            operation="list plug-ins",
        )
        return [_plugin(plugin) for plugin in answer.plugins]
