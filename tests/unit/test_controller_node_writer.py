"""When a NodePrepull is written, and what happens when the API server does not take it."""

from __future__ import annotations

from math import inf
from typing import Any, cast

import pytest

from imageprepull.controller.assign import Choice, assign
from imageprepull.controller.dirty import Rate
from imageprepull.controller.node_writer import NodeWriter
from imageprepull.controller.nodes import NodeFacts
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds
from tests.unit.controller_doubles import candidate, digest, nodes, resolution

NGINX = "docker.io/library/nginx:1"
STABLE = "docker.io/library/nginx:stable"
OLD = "v1.24.0"


class Api:
    """A FAKE API server with one NodePrepull, or none; it compares resourceVersions as the real one does."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.applied: list[dict[str, Any]] = []
        self.version = 1

    async def apply(self, kind: object, name: str, body: dict[str, Any], **_: object) -> dict[str, Any]:
        known = self.stored["metadata"]["resourceVersion"] if self.stored else None
        if body["metadata"].get("resourceVersion", known) != known:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.applied.append(body)
        self.version += 1
        metadata = {"uid": name, "resourceVersion": str(self.version), "generation": self.version}
        self.stored = {**body, "metadata": body["metadata"] | metadata}
        return self.stored

    async def get(self, kind: object, name: str) -> dict[str, Any]:
        if self.stored is None:
            raise ApiError(404, "NotFound", f'nodeprepulls.imageprepull.io "{name}" not found')
        return self.stored


def operator(*, chosen: bool = True, kubelet: str = "") -> tuple[Api, Standby, NodeWriter]:
    api = Api()
    standby = Standby(cast("Any", api), OperatorSettings(access=cast("Any", None), identity="one"))
    standby.world.nodes.update(nodes("n1", kubelet_without_pins=kubelet))
    web = candidate(nodeSelector={} if chosen else {"zone": "nowhere"})
    standby.world.planned = {web.uid: web}
    standby.world.choices = assign([web], standby.world.nodes, {NGINX: resolution(NGINX, 1)})
    return api, standby, NodeWriter(cast("Any", api), standby, Rate(1000))


@pytest.mark.parametrize("kubelet", ["", OLD])
async def test_a_node_that_nobody_chose_gets_no_object_whatever_its_kubelet_is(kubelet: str) -> None:
    api, _, writer = operator(chosen=False, kubelet=kubelet)
    await writer.write("n1")
    assert api.applied == []


async def test_a_node_that_was_chosen_is_told_that_its_kubelet_pays_no_heed() -> None:
    api, _, writer = operator(kubelet=OLD)
    await writer.write("n1")
    assert [body["spec"]["kubeletWithoutPins"] for body in api.applied] == [OLD]


async def test_what_the_crd_has_no_place_for_is_neither_written_nor_missed() -> None:
    api, standby, writer = operator(kubelet=OLD)
    standby.trust.lacking = frozenset({("kubeletWithoutPins",), ("images", "pin")})
    for _ in range(2):
        await writer.write("n1")
    assert [set(body["spec"]) for body in api.applied] == [{"images"}]
    assert "pin" not in api.applied[0]["spec"]["images"][0]
    standby.trust.lacking = frozenset()
    for _ in range(2):
        await writer.write("n1")
    assert len(api.applied) == 2
    assert api.applied[1]["spec"]["kubeletWithoutPins"] == OLD


@pytest.mark.parametrize(
    ("chosen", "state", "on_removal", "taken_back"),
    [
        (True, "Absent", "Delete", True),
        (True, "Absent", "Unpin", False),
        (True, "Present", "Unpin", False),
        (False, "Absent", "Delete", False),
    ],
)
async def test_a_write_that_takes_an_order_to_delete_back_is_told_from_others(
    chosen: bool, state: str, on_removal: str, taken_back: bool
) -> None:
    _, standby, writer = operator(chosen=chosen)
    stand(standby, {"reference": NGINX, "digest": digest(1), "state": state, "onRemoval": on_removal})
    assert (standby.world.deleting() == {"n1"}) is (on_removal == "Delete")
    assert writer.takes_back("n1") is taken_back


@pytest.mark.parametrize(
    ("wanted", "stands", "taken_back"), [(1, False, True), (2, False, False), (1, True, False)]
)
async def test_what_keeps_the_digest_takes_its_order_back_under_whatever_reference(
    wanted: int, stands: bool, taken_back: bool
) -> None:
    """The agent goes by digests. What stands in the spec already keeps its digest without another write."""
    _, standby, writer = operator()
    standby.world.choices = assign(
        standby.world.planned.values(), standby.world.nodes, {NGINX: resolution(NGINX, wanted)}
    )
    order = {"reference": STABLE, "digest": digest(1), "state": "Absent", "onRemoval": "Delete"}
    stand(standby, order, *([{"reference": NGINX, "digest": digest(wanted)}] if stands else ()))
    assert writer.takes_back("n1") is taken_back


def stand(standby: Standby, *entries: dict[str, Any]) -> None:
    """These are the entries of n1's NodePrepull, of an object that nobody knows."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "ownerReferences": [owner]}
    spec = {"images": [entry | {"owners": ["shop/old/uid-old"]} for entry in entries]}
    standby.intake.node_prepull(Change("added", {"metadata": metadata, "spec": spec}, None, witnessed=True))


@pytest.mark.parametrize("restored", ["an older one", "none"])
async def test_what_a_restored_backup_left_is_read_when_no_event_says_so(restored: str) -> None:
    """The watch finds what it had before our last write was answered: nothing has changed for it."""
    api, standby, writer = operator()
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "ownerReferences": [owner]}
    backup = {"metadata": metadata, "spec": {"images": []}}
    api.stored = backup
    standby.intake.node_prepull(Change("added", backup, None, witnessed=True))
    await writer.write("n1")
    api.stored = backup if restored == "an older one" else None
    web = candidate(priority=7)
    standby.world.planned = {web.uid: web}
    with pytest.raises(ApiError, match="Conflict"):
        await writer.write("n1")
    # The plan may be of objects that were made since.
    await writer.write("n1")
    assert len(api.applied) == 1
    assert standby.node_prepulls.sight.regained == inf
    standby.node_prepulls.sight.regained = standby.world.planned_of = 7
    await writer.write("n1")
    assert [image["priority"] for image in api.stored["spec"]["images"]] == [7]  # type: ignore[index]
    assert api.stored["spec"]["images"][0]["digest"] == digest(1)  # type: ignore[index]


@pytest.mark.parametrize("lost", ["nodes", "nodeprepulls"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_plan_of_before_the_api_server_was_lost_is_not_written(when: str, lost: str) -> None:
    """A restored backup may have taken objects back that the plan is of, and labels that it goes by."""
    api, standby, writer = operator()
    standby.world.listed = standby.world.planned_of = 5
    follower = next(one for one in standby.informers if one.kind.plural == lost)
    if when == "before":
        follower.sight.regained = 7
    else:

        async def slot() -> None:
            follower.sight.regained = 7

        writer._rate.slot = slot  # type: ignore[method-assign]
    given_back: list[bool] = []
    writer._rate.give_back = lambda: given_back.append(True)  # type: ignore[method-assign]
    await writer.write("n1")
    assert not api.applied
    assert bool(given_back) == (when == "meanwhile")
    assert standby.list_due()
    standby.world.planned_of = 8
    await writer.write("n1")
    assert len(api.applied) == 1


async def test_nor_is_one_whose_turn_to_be_written_comes_after_the_next_plan() -> None:
    """All may be known again by then: what was decided before is no better for that."""
    api, standby, writer = operator()
    standby.world.listed = standby.world.planned_of = 5

    async def slot() -> None:
        standby.node_prepulls.sight.regained = 7
        standby.world.listed = standby.world.planned_of = 8

    writer._rate.slot = slot  # type: ignore[method-assign]
    await writer.write("n1")
    assert standby.may_write()
    assert not api.applied
    await writer.write("n1")
    assert len(api.applied) == 1


async def test_no_nodeprepull_is_taken_for_an_earlier_lifes_while_the_node_may_be_older_by_now() -> None:
    """The Node may have been made anew after a backup that has the one before."""
    api, standby, writer = operator()
    deleted = []

    async def delete(kind: object, name: str, *, uid: str) -> None:
        deleted.append((name, uid))

    api.delete = delete  # type: ignore[attr-defined]
    stand(standby, {"reference": NGINX, "digest": digest(1)})
    standby.world.nodes["n1"] = NodeFacts("n1", "anew")
    standby.node_prepulls.sight.regained = inf
    await writer.write("n1")
    assert deleted == []
    standby.node_prepulls.sight.regained = standby.world.planned_of = 7
    await writer.write("n1")
    assert deleted == [("n1", "n1")]


def version(number: int) -> dict[str, Any]:
    """n1's NodePrepull, as of a resourceVersion."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": str(number), "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"images": []}}


@pytest.mark.parametrize("found", [True, False])
async def test_what_the_watch_tells_while_an_object_is_read_again_is_not_lost(found: bool) -> None:
    """An agent's last word, say: no other event would come for long."""
    api, standby, writer = operator()
    standby.node_prepulls.read(version(1))
    api.stored = version(2) if found else None
    read = api.get

    async def overtaken(kind: object, name: str) -> dict[str, Any]:
        try:
            return await read(kind, name)
        finally:
            # As the watch does, before the answer has come.
            standby.node_prepulls.read(version(3))

    api.get = overtaken  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="Conflict"):
        await writer.write("n1")
    assert standby.world.node_prepulls["n1"].object.metadata.resource_version == "3"


async def test_what_was_made_anew_and_deleted_while_it_is_read_again_is_not_there() -> None:
    api, standby, writer = operator()
    standby.node_prepulls.read(version(1))
    api.stored = version(3)
    apply = api.apply

    async def overtaken(*arguments: Any, **more: Any) -> dict[str, Any]:
        # The watch tells that it is deleted before the conflict is known, and that its next life is before it is read.
        standby.node_prepulls.missing(("", "n1"))
        standby.node_prepulls.version = "4"
        return await apply(*arguments, **more)

    api.apply = overtaken  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="Conflict"):
        await writer.write("n1")
    assert (standby.world.node_prepulls, standby.node_prepulls.cache) == ({}, {})


@pytest.mark.parametrize(("image", "states"), [("No Image", []), ("redis:7", ["Absent"])])
async def test_an_image_of_many_waits_for_an_object_that_is_refused(image: str, states: list[str]) -> None:
    """It may be an owner that the entry had no room for. One that is in the plan is not."""
    api, standby, writer = operator(chosen=False)
    owners = [f"shop/o{number}/o{number}" for number in range(bounds.OWNERS)]
    for owner in owners:
        namespace, name, uid = owner.split("/")
        standby.witness.deleted(uid, namespace, name)
        standby.witness.read(uid, found=False, trusted=True, now=0)
    reference = {"kind": "Node", "name": "n1", "uid": "uid-n1"}
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "ownerReferences": [reference]}
    entry = {"reference": NGINX, "digest": digest(1), "onRemoval": "Delete", "owners": owners}
    api.stored = {"metadata": metadata, "spec": {"images": [entry]}}
    standby.intake.node_prepull(Change("added", api.stored, None, witnessed=True))
    late = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "1", "generation": 1}
    known = standby.intake.prepull({"metadata": late, "spec": {"images": [{"image": image}]}})
    standby.world.planned = {known.uid: known.candidate} if known.candidate else {}
    standby.world.choices = {known.uid: Choice()} if known.candidate else {}
    await writer.write("n1")
    assert [one["state"] for body in api.applied for one in body["spec"]["images"]] == states
