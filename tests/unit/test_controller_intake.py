import time
from typing import Any

import pytest

from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World
from imageprepull.kube.informer import Change
from tests.unit.controller_doubles import nodes


def prepull(version: int, policy: str = "", uid: str = "uid") -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": "web", "uid": uid, "resourceVersion": str(version)}
    spec = {"images": [{"image": "nginx:1"}]} | ({"deletionPolicy": policy} if policy else {})
    return {"metadata": metadata | {"generation": version}, "spec": spec}


async def test_what_an_object_says_last_counts_whether_its_end_was_seen_or_not() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    policies = world.policies
    intake.prepull(prepull(1, "Delete"))
    assert policies.retaining == set()
    intake.prepull_event("DELETED", prepull(4, "Retain"))
    assert policies.retaining == {"uid"}
    # A read that began before all that.
    intake.prepull(prepull(3, "Delete"))
    intake.no_prepull(("shop", "web"))
    assert policies.retaining == {"uid"}
    # Another life of it, whose end nobody sees; an absent policy means Retain, a later word counts.
    intake.prepull_event("ADDED", prepull(5, "", uid="anew"))
    intake.prepull_event("MODIFIED", prepull(6, "Delete", uid="anew"))
    intake.no_prepull(("shop", "web"))
    assert policies.retaining == {"uid"}
    intake.prepull_event("MODIFIED", prepull(7, "Whatever a newer version knows", uid="anew"))
    assert policies.retaining == {"uid", "anew"}
    policies.forget({"anew": ("shop", "web")})
    assert policies.retaining == {"anew"}
    intake.prepull_event("DELETED", prepull(8, "Delete", uid="anew"))
    assert policies.retaining == set()


async def test_after_a_restored_backup_the_lower_version_is_the_newer_word() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    asked = time.monotonic()
    intake.prepull_event("MODIFIED", prepull(5000, "Retain"))
    intake.prepull(prepull(3010, "Delete"), asked=asked)
    assert world.policies.retaining == {"uid"}, "the request was under way before that was heard"
    intake.prepull(prepull(3010, "Delete"), asked=time.monotonic())
    assert world.policies.retaining == set()
    intake.prepull_event("MODIFIED", prepull(3011, "Retain"))
    assert world.policies.retaining == {"uid"}
    intake.prepull_event("MODIFIED", prepull(3009, "Delete"))
    assert world.policies.retaining == {"uid"}, "an event that an answer has overtaken"


async def test_the_last_word_counts_even_when_nothing_was_read_since_a_restored_backup() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    intake.prepull_event("MODIFIED", prepull(5000, "Delete"))
    asked = time.monotonic()
    intake.prepull_event("DELETED", prepull(3012, "Retain"))
    intake.prepull(prepull(3010, "Delete"), asked=asked)
    assert world.policies.retaining == {"uid"}


@pytest.mark.parametrize("late", [prepull(1), prepull(1, uid="before"), None], ids=["edited", "anew", "made"])
async def test_an_answer_that_one_asked_for_before_has_overtaken_is_asked_for_again(
    late: dict[str, Any] | None,
) -> None:
    """It may be older all the same, and the event was taken for an echo."""
    world, queues = World(), Queues()
    intake = Intake(world, queues, Witness())
    first, second = time.monotonic(), time.monotonic()
    intake.prepull(prepull(2), asked=first)
    intake.prepull_event("MODIFIED", prepull(2))
    assert not len(queues.prepulls)
    if late is None:
        intake.no_prepull(("shop", "web"), asked=second)
    else:
        intake.prepull(late, asked=second)
    assert len(queues.prepulls) == 1


async def test_a_list_that_our_own_status_write_has_overtaken_is_no_news_of_the_status() -> None:
    """The write's event was taken for an echo, and the list may have seen the status of before."""
    world, queues = World(), Queues()
    intake = Intake(world, queues, Witness())
    known = intake.prepull(prepull(1))
    listing = time.monotonic()
    world.prepulls[known.key] = known.with_status(known.prepull, "2", answered=time.monotonic())
    intake.prepull_event("MODIFIED", prepull(2))
    assert not len(queues.prepulls)
    intake.prepull(prepull(1), asked=listing)
    assert len(queues.prepulls) == 1


async def test_answers_that_agree_or_follow_each_other_are_not_asked_for_again() -> None:
    world, queues = World(), Queues()
    intake = Intake(world, queues, Witness())
    first, second = time.monotonic(), time.monotonic()
    intake.prepull(prepull(2), asked=first)
    intake.prepull(prepull(2), asked=second)
    intake.prepull(prepull(3), asked=time.monotonic())
    intake.prepull(prepull(2), asked=second)
    intake.no_prepull(("shop", "web"), asked=second)
    intake.no_prepull(("shop", "web"), asked=time.monotonic())
    assert not world.prepulls
    assert not len(queues.prepulls)


def node_prepull_of(node: str) -> dict[str, Any]:
    """One image that is wanted and one that is to be deleted."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": f"uid-{node}"}
    metadata = {"name": node, "uid": node, "resourceVersion": "1", "ownerReferences": [owner]}
    entries = [
        {"reference": name, "digest": "sha256:" + name * 64, "state": state, "onRemoval": "Delete"}
        for name, state in (("a", "Present"), ("b", "Absent"))
    ]
    return {"metadata": metadata, "spec": {"images": entries}}


@pytest.mark.parametrize(("witnessed", "left"), [(True, ["a", "b"]), (False, [])])
def test_nothing_is_left_of_a_nodeprepull_that_vanished_unseen(witnessed: bool, left: list[str]) -> None:
    """In an older backup the objects that it was made for are missing as well."""
    world = World(nodes=nodes("n1"))
    intake = Intake(world, Queues(), Witness())
    document = node_prepull_of("n1")
    intake.node_prepull(Change("added", document, None, witnessed=True))
    intake.node_prepull(Change("deleted", document, document, witnessed=witnessed))
    assert [one.reference for one in world.current("n1")] == left


@pytest.mark.parametrize("node_first", [True, False])
def test_nothing_is_left_of_a_nodeprepull_whose_node_is_gone(node_first: bool) -> None:
    """The garbage collector deletes it after the Node; another Node of that name, or the same from a backup, may come."""
    world = World()
    intake = Intake(world, Queues(), Witness())
    node = {"metadata": {"name": "n1", "uid": "uid-n1", "resourceVersion": "1"}}
    document = node_prepull_of("n1")
    intake.node(Change("added", node, None, witnessed=True))
    intake.node_prepull(Change("added", document, None, witnessed=True))
    ends = [(intake.node, node), (intake.node_prepull, document)]
    for tell, gone in ends if node_first else reversed(ends):
        tell(Change("deleted", gone, gone, witnessed=True))
    assert not world.leftover
    intake.node(
        Change("added", node | {"metadata": node["metadata"] | {"uid": "anew"}}, None, witnessed=True)
    )
    assert world.current("n1") == []
