"""What the operator knows of the cluster at this moment, typed: filled by informers and handlers, read by all loops.

No I/O and no decisions. Everything here can be lost at any time: it is read back from the objects, but for what objects
that are gone have said last (`policies`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

from imageprepull.controller.assign import Candidate, Choice
from imageprepull.controller.images import BadSpec
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.policies import DeletionPolicies
from imageprepull.controller.render import cut_short, done_removals
from imageprepull.controller.retries import RetryOrder
from imageprepull.controller.strays import believed
from imageprepull.resources.imageprepull import ImagePrepull
from imageprepull.resources.nodeprepull import DesiredImage, NodePrepull

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class KnownPrepull:
    """An ImagePrepull that exists: acted on (`candidate`) or refused (`bad`).

    Read by a request sent at `asked`; `answered` is when that was, or our last write of its status. Both monotonic.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    prepull: ImagePrepull
    candidate: Candidate | None = None
    bad: BadSpec | None = None
    asked: float = -inf
    answered: float = -inf

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.namespace, self.name

    def with_status(self, prepull: ImagePrepull, resource_version: str, *, answered: float) -> KnownPrepull:
        """The same object after a write of its status."""
        candidate = None if self.candidate is None else replace(self.candidate, prepull=prepull)
        return replace(
            self, prepull=prepull, candidate=candidate, resource_version=resource_version, answered=answered
        )


@dataclass(frozen=True)
class KnownNodePrepull:
    """A NodePrepull; `node_uid` is the uid of the Node that owns it."""

    object: NodePrepull
    node_uid: str

    @cached_property
    def deletes(self) -> bool:
        """Whether its agent has an image left to delete. Asked for all nodes again and again."""
        return orders_to_delete(self.object)

    @cached_property
    def ordered(self) -> frozenset[str]:
        """The digests of images that entries order to delete, whatever is said to have become of that."""
        return frozenset(entry.digest for entry in self.object.spec.images if entry.to_be_deleted)


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The agent on a node; `since` is when its readiness last changed (RFC 3339)."""

    ready: bool
    since: str = ""


@dataclass(slots=True)
class World:
    """The caches.

    `leftover` are entries of a NodePrepull that somebody deleted, until it is written again or the API server is lost.
    """

    prepulls: dict[Key, KnownPrepull] = field(default_factory=dict)
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    node_prepulls: dict[str, KnownNodePrepull] = field(default_factory=dict)
    leftover: dict[str, list[DesiredImage]] = field(default_factory=dict)
    agents: dict[str, AgentPod] = field(default_factory=dict)
    agent_missing_since: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    planned: dict[str, Candidate] = field(default_factory=dict)
    """The candidates that `choices` was made of, by uid."""
    listed: float = -inf
    """When the last complete list of ImagePrepulls was asked for, in monotonic seconds."""
    planned_of: float = -inf
    """`listed` when the plan was made."""
    strays: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    """By node, the pins without an entry that were reported before all ImagePrepulls were last listed."""
    policies: DeletionPolicies = field(default_factory=DeletionPolicies)
    retries: dict[str, RetryOrder] = field(default_factory=dict)
    """The orders of `planned` that are not answered yet, by uid."""

    def current(self, node: str) -> list[DesiredImage]:
        """The entries that stand for a node now."""
        known = self.node_prepulls.get(node)
        return known.object.spec.images if known else self.leftover.get(node, [])

    def owners_cut(self) -> bool:
        """Whether an entry anywhere may have more owners than it lists, so that no uid is known to be unreferenced."""
        return any(
            cut_short(entry)
            for name in self.node_prepulls.keys() | self.leftover.keys()
            for entry in self.current(name)
        )

    def deleting(self) -> set[str]:
        """The nodes where an order to delete an image stands."""
        return {name for name, known in self.node_prepulls.items() if known.deletes}

    def ordered(self) -> set[str]:
        """The nodes with such an entry, carried out or not.

        A restored backup may say so of an image that was brought again since, and its agent obeys anew.
        """
        return {name for name, known in self.node_prepulls.items() if known.ordered}

    def may_mean(self, node: str, digests: Collection[str]) -> bool:
        """Whether the plan has an object bring one of these images to a node, or keep it there, as far as is known."""
        for choice in self.choices.values():
            kept = choice.kept.get(node)
            for one in kept.images if kept else choice.nodes.get(node, ()):
                if not one.digest or one.digest in digests:
                    return True
        return False

    def reported_strays(self) -> dict[str, frozenset[tuple[str, str]]]:
        """What agents report at this moment, by node."""
        found = {name: believed(known.object) for name, known in self.node_prepulls.items()}
        return {name: strays for name, strays in found.items() if strays}

    @property
    def all_planned(self) -> bool:
        """Whether the plan stands for every object that is known: none is unreadable, refused, or newer than it."""
        return all(
            known.candidate is not None
            and (planned := self.planned.get(known.uid)) is not None
            and planned.prepull.metadata.generation == known.generation
            for known in self.prepulls.values()
        )

    def referenced(self) -> dict[str, Key]:
        """Every uid that is named by an entry or known otherwise, with its namespace and name."""
        found: dict[str, Key] = {known.uid: known.key for known in self.prepulls.values()}
        for name in self.node_prepulls.keys() | self.leftover.keys():
            for entry in self.current(name):
                for owner in entry.owners:
                    namespace, _, rest = owner.partition("/")
                    prepull, _, uid = rest.partition("/")
                    # What is not ours to read stays an owner that nobody knows, and keeps its entry.
                    if namespace and prepull and uid:
                        found.setdefault(uid, (namespace, prepull))
        return found


def orders_to_delete(prepull: NodePrepull) -> bool:
    """Whether an agent has an image left to delete."""
    orders = {(entry.reference, entry.digest) for entry in prepull.spec.images if entry.to_be_deleted}
    return bool(orders) and not orders <= done_removals(prepull.status, prepull.metadata.generation)
