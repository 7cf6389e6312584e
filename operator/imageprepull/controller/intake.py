"""API documents into the `World`, and marks on whatever has to be looked at again. No requests, no waiting.

The callbacks of the informers and kopf's events end here; the loops take over from the queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from imageprepull.controller import clock, retries
from imageprepull.controller.dirty import DirtyKeys
from imageprepull.controller.nodes import read_node
from imageprepull.controller.pins import yielded
from imageprepull.controller.reading import read_agent, read_node_prepull, read_prepull
from imageprepull.controller.registries import behind, has_work, ordered_holds
from imageprepull.controller.render import cut_short, uid_of
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import Key, KnownPrepull, World
from imageprepull.kube.informer import Change
from imageprepull.resources.nodeprepull import NodePrepull

PLAN = "plan"


@dataclass(slots=True)
class Queues:
    """What has to be looked at: ImagePrepulls to read, the plan as a whole, nodes to write, statuses to write."""

    debounce: float = 0.2
    prepulls: DirtyKeys[Key] = field(init=False)
    plan: DirtyKeys[str] = field(init=False)
    nodes: DirtyKeys[str] = field(init=False)
    statuses: DirtyKeys[Key] = field(init=False)

    def __post_init__(self) -> None:
        self.prepulls = DirtyKeys()
        self.plan = DirtyKeys(debounce=self.debounce)
        self.nodes = DirtyKeys()
        self.statuses = DirtyKeys(debounce=self.debounce)


class Intake:
    """Takes documents in; `world` and `queues` are shared with the loops."""

    def __init__(self, world: World, queues: Queues, witness: Witness) -> None:
        self._world = world
        self._queues = queues
        self._witness = witness
        self.on_pins_yielded: Callable[[NodePrepull], None] | None = None
        """Told of a node whose pins have just yielded, by the replica that leads."""

    def prepull_event(self, event: str | None, body: dict[str, Any]) -> None:
        """An event of the ImagePrepull watch. It only marks: the object is then read by a quorum GET."""
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        known = self._world.prepulls.get(key)
        self._world.policies.note(body, last=event == "DELETED")
        if event == "DELETED":
            self._witness.deleted(metadata["uid"], *key, now=time.monotonic())
        elif known is not None and known.resource_version == metadata["resourceVersion"]:
            # The echo of our own status write.
            return
        self._queues.prepulls.add(key)

    def prepull(self, document: dict[str, Any], *, asked: float | None = None) -> KnownPrepull:
        """An ImagePrepull as just read, by a request that was sent at the monotonic time `asked`; just now, unless given.

        What one has told that was sent later stays, and so does that it was deleted: no event would tell once more.
        """
        found = read_prepull(document, time.monotonic() if asked is None else asked)
        self._world.policies.note(document, asked=asked)
        known = self._world.prepulls.get(found.key)
        there = self._witness.seen(found.uid, asked=found.asked)
        if not there or (known is not None and known.asked > found.asked):
            return found
        self._world.prepulls[found.key] = found
        if known is not None and known.resource_version != found.resource_version:
            self._read_in_between(known, found.asked)
        if (
            known is None
            or (known.uid, known.generation) != (found.uid, found.generation)
            # After a restored backup another edit may have the same generation.
            or known.prepull.spec != found.prepull.spec
            # An annotation changes no generation.
            or retries.written(known.prepull) != retries.written(found.prepull)
        ):
            self._queues.plan.add(PLAN)
        self._queues.statuses.add(found.key)
        return found

    def no_prepull(self, key: Key, *, asked: float = inf) -> None:
        """There was no ImagePrepull under this key at `asked`. That alone takes nothing back."""
        known = self._world.prepulls.get(key)
        if known is not None and known.asked <= asked:
            del self._world.prepulls[key]
            self._queues.plan.add(PLAN)
            self._read_in_between(known, asked)

    def _read_in_between(self, known: KnownPrepull, asked: float) -> None:
        """What was `known` gave way to the answer of a request sent at `asked`: read once more if it came meanwhile.

        Either may be the older one then, and the newer one's event may have been taken for an echo.
        """
        if known.answered > asked:
            self._queues.prepulls.add(known.key)

    def node(self, change: Change) -> None:
        """A Node came, went or changed; heartbeats and conditions other than disk pressure do not count."""
        name = change.object["metadata"]["name"]
        if change.type == "deleted":
            self._world.nodes.pop(name, None)
            self._world.leftover.pop(name, None)
            self._world.agent_missing_since.pop(name, None)
        else:
            facts = read_node(change.object)
            if self._world.nodes.get(name) == facts:
                return
            self._world.nodes[name] = facts
        self._queues.nodes.add(name)
        self._queues.plan.add(PLAN)

    def node_prepull(self, change: Change) -> None:
        """A NodePrepull changed: its node's spec may be behind, its owners' statuses are."""
        name = change.object["metadata"]["name"]
        before = self._world.node_prepulls.get(name)
        if change.type == "deleted":
            self._no_node_prepull(name, witnessed=change.witnessed)
        else:
            self._node_prepull_read(change.object)
            now = self._world.node_prepulls.get(name)
            if self.on_pins_yielded and now and yielded(before.object if before else None, now.object):
                self.on_pins_yielded(now.object)
        self._queues.nodes.add(name)
        self._mark_owners(name)
        after = self._world.node_prepulls.get(name)
        self._mark_held(before.object if before else None, after.object if after else None)

    def _mark_held(self, before: NodePrepull | None, now: NodePrepull | None) -> None:
        """A registry told one node to wait: the others that may ask it have to know, too."""
        if now is None or (before is not None and before.status.registries == now.status.registries):
            return
        holds = ordered_holds([now.status], clock.now())
        if not holds:
            return
        for name, known in self._world.node_prepulls.items():
            if has_work(known.object.status) and behind(known.object.spec.registries, holds):
                self._queues.nodes.add(name)

    def _node_prepull_read(self, document: dict[str, Any]) -> None:
        found = read_node_prepull(document)
        if found is not None:
            name = found.object.metadata.name
            self._world.node_prepulls[name] = found
            self._world.leftover.pop(name, None)

    def _no_node_prepull(self, name: str, *, witnessed: bool) -> None:
        before = self._world.node_prepulls.pop(name, None)
        # The garbage collector takes it after its Node: another one of this name has nothing of it.
        if before is None or name not in self._world.nodes:
            return
        # What vanished unseen may never have been in a restored backup, nor may the objects whose images these are: they
        # would be missed next, and let go of.
        if witnessed:
            # The orders to let go would be lost with the object; while the Node is there they stand.
            self._world.leftover[name] = before.object.spec.images

    def agent_pod(self, change: Change) -> None:
        """An agent's pod changed its readiness, came or went."""
        node, agent = read_agent(change.object)
        if not node:
            return
        before = self._world.agents.get(node)
        if change.type == "deleted":
            self._world.agents.pop(node, None)
        else:
            self._world.agents[node] = agent
            self._world.agent_missing_since.pop(node, None)
        if self._world.agents.get(node) != before:
            self.mark_node_statuses(node)

    def _mark_owners(self, node: str) -> None:
        entries = self._world.current(node)
        if any(map(cut_short, entries)):
            # Not all owners are listed.
            self.mark_node_statuses(node)
        uids = {uid_of(owner) for entry in entries for owner in entry.owners}
        for known in self._world.prepulls.values():
            if known.uid in uids:
                self._queues.statuses.add(known.key)

    def mark_node_statuses(self, node: str) -> None:
        """Mark the statuses of all ImagePrepulls that chose a node."""
        for known in self._world.prepulls.values():
            choice = self._world.choices.get(known.uid)
            if choice is not None and node in choice.nodes:
                self._queues.statuses.add(known.key)
