"""What the leader remembers over a list of everything, and what it forgets."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Any, cast

import pytest

from imageprepull.controller.assign import Choice
from imageprepull.controller.intake import PLAN
from imageprepull.controller.leader import Leader
from imageprepull.controller.resolution import Resolution
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds
from tests.unit.controller_doubles import digest, nodes


class Api:
    """A FAKE API server, without a single ImagePrepull at first. An answer to a list waits for `arrive`."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.error: ApiError | None = None
        self.lists = 0
        self.asked, self.arrive = asyncio.Event(), asyncio.Event()
        self.arrive.set()

    async def list(self, kind: object) -> tuple[list[dict[str, Any]], str]:
        found = list(self.objects)
        self.lists += 1
        self.asked.set()
        if self.error is not None:
            raise self.error
        await self.arrive.wait()
        return found, "1"

    async def get(self, kind: object, name: str, namespace: str) -> dict[str, Any]:
        for document in self.objects:
            if document["metadata"]["name"] == name:
                return document
        raise ApiError(404, "NotFound", f'imageprepulls "{name}" not found')

    async def merge_patch(
        self, kind: object, name: str, body: dict[str, Any], *, namespace: str, subresource: str
    ) -> dict[str, Any]:
        before = await self.get(kind, name, namespace)
        version = str(int(before["metadata"]["resourceVersion"]) + 1)
        now = before | {"metadata": before["metadata"] | {"resourceVersion": version}}
        now[subresource] = {key: value for key, value in body[subresource].items() if value is not None}
        self.objects = [now if one is before else one for one in self.objects]
        return now


def prepull(name: str, uid: str = "uid", generation: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": f"{generation}"}
    return {"metadata": metadata | {"generation": generation}, "spec": {"images": [{"image": "a"}]}}


def resolved(meant: str) -> dict[str, Any]:
    layer = {"digest": digest(7), "size": 7, "nodes": {}}
    platform = {
        "platform": "linux/amd64",
        "manifest": digest(8),
        "config": digest(9),
        "size": 7,
        "layers": [layer],
    }
    image = {"image": "r.io/a:1", "digest": meant, "platforms": [platform]}
    document = prepull("web") | {"status": {"observedGeneration": 1, "images": [image]}}
    document["spec"] = {"images": [{"image": "r.io/a:1"}]}
    return document


def leading() -> tuple[Api, Standby, Leader]:
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", api), settings)
    return api, standby, Leader(cast("Any", api), cast("Any", None), standby, settings)


def owned_by(owners: int) -> Change:
    """A NodePrepull whose image has so many owners, none of which is called late."""
    image = {
        "reference": "a",
        "digest": "sha256:" + "a" * 64,
        "owners": [f"shop/o{number}/o{number}" for number in range(owners)],
    }
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "generation": 1}
    return Change("added", {"metadata": metadata, "spec": {"images": [image]}}, None, witnessed=True)


@pytest.mark.parametrize(("owners", "remembered"), [(bounds.OWNERS, {"late"}), (bounds.OWNERS - 1, set())])
async def test_the_last_words_of_who_may_own_an_image_without_being_listed_are_remembered(
    owners: int, remembered: set[str]
) -> None:
    _, standby, leader = leading()
    standby.intake.node_prepull(owned_by(owners))
    late = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "2", "generation": 1}
    standby.intake.prepull_event("DELETED", {"metadata": late, "spec": {"deletionPolicy": "Retain"}})
    standby.witness.read("late", found=False, trusted=True, now=0)
    await leader._list()
    assert standby.world.policies.retaining == remembered
    assert standby.witness.gone == remembered


@pytest.mark.parametrize(("owners", "told"), [(bounds.OWNERS, True), (bounds.OWNERS - 1, False)])
async def test_who_is_not_listed_as_an_owner_hears_of_its_nodes(owners: int, told: bool) -> None:
    _, standby, _ = leading()
    metadata = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "2", "generation": 1}
    known = standby.intake.prepull({"metadata": metadata, "spec": {"images": [{"image": "a"}]}})
    standby.queues.statuses.done(await standby.queues.statuses.take())
    standby.world.choices["late"] = Choice({"n1": ()})
    standby.intake.node_prepull(owned_by(owners))
    assert bool(len(standby.queues.statuses)) is told
    if told:
        assert await standby.queues.statuses.take() == known.key


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], [prepull("web")]),
        ([prepull("web")], [prepull("web", generation=2)]),
        ([prepull("web")], []),
        ([prepull("web")], [prepull("web", "anew")]),
    ],
    ids=["made", "edited", "deleted", "made anew"],
)
async def test_what_is_heard_while_a_list_is_on_its_way_stays(
    before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> None:
    """Nothing would tell of it again before the next list."""
    api, standby, leader = leading()
    api.objects = before
    await leader._list()
    api.arrive.clear()
    api.asked.clear()
    listing = asyncio.create_task(leader._list())
    await api.asked.wait()
    api.objects = now
    for document in before:
        if not any(one["metadata"]["uid"] == document["metadata"]["uid"] for one in now):
            standby.intake.prepull_event("DELETED", document)
    for document in now:
        standby.intake.prepull_event("MODIFIED", document)
    await leader._read(("shop", "web"))
    api.arrive.set()
    await listing
    known = [(one.uid, one.generation) for one in standby.world.prepulls.values()]
    assert known == [(one["metadata"]["uid"], one["metadata"]["generation"]) for one in now]
    stay = {one["metadata"]["uid"] for one in before} <= {one["metadata"]["uid"] for one in now}
    assert standby.witness.settled is stay, "whether nobody is to be looked for"


async def test_an_answer_that_is_older_than_a_list_does_not_count() -> None:
    api, standby, leader = leading()
    get = api.get

    async def slow(kind: object, name: str, namespace: str) -> dict[str, Any]:
        try:
            return await get(kind, name, namespace)
        finally:
            api.objects = [prepull("web", generation=2)]
            await leader._list()

    api.get = slow  # type: ignore[method-assign]
    await leader._read(("shop", "web"))
    assert [one.generation for one in standby.world.prepulls.values()] == [2]
    api.objects = [prepull("web")]
    await leader._read(("shop", "web"))
    assert [one.generation for one in standby.world.prepulls.values()] == [2]
    api.get = get  # type: ignore[method-assign]
    api.objects = []
    await leader._read(("shop", "web"))
    assert not standby.world.prepulls


async def test_a_status_that_was_written_while_a_list_was_on_its_way_is_read_again() -> None:
    """The list says what stood there before, and the write's event was taken for an echo."""
    api, standby, leader = leading()
    api.objects = [prepull("web") | {"spec": {"images": "none that can be read"}}]
    await leader._list()
    api.arrive.clear()
    api.asked.clear()
    listing = asyncio.create_task(leader._list())
    await api.asked.wait()
    await leader._statuses.write(("shop", "web"))
    standby.intake.prepull_event("MODIFIED", api.objects[0])
    assert standby.queues.prepulls.idle
    api.arrive.set()
    await listing
    assert standby.world.prepulls["shop", "web"].resource_version == "1"
    assert await standby.queues.prepulls.take() == ("shop", "web")


async def test_once_the_api_server_is_back_a_list_is_asked_for_and_the_next_plan_is_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api, standby, leader = leading()
    standby.world.nodes.update(nodes("n1"))
    monkeypatch.setattr("imageprepull.controller.leader.LOOK_AT_LOSS", 0.01)
    standby.node_prepulls.sight.regained = inf
    resyncing = asyncio.create_task(leader._resync())
    assert not standby.may_write()
    await asyncio.sleep(0)
    assert api.lists == 0, "it would be of no use yet"
    standby.node_prepulls.sight.regained = time.monotonic()
    async with asyncio.timeout(5):
        await standby.queues.plan.take()
    assert api.lists == 1
    assert not standby.may_write(), "listed is not planned"
    assert not standby.list_due()
    await leader._planner.plan(PLAN)
    assert standby.may_write()
    assert len(standby.queues.nodes) == 1, "every node is looked at again"
    resyncing.cancel()


async def test_a_list_that_was_asked_for_before_the_api_server_came_back_is_not_enough() -> None:
    api, standby, leader = leading()
    api.arrive.clear()
    listing = asyncio.create_task(leader._list())
    await api.asked.wait()
    standby.node_prepulls.sight.regained = time.monotonic()
    api.arrive.set()
    await listing
    await leader._planner.plan(PLAN)
    assert not standby.may_write()
    assert standby.list_due()


@pytest.mark.parametrize("lost", [True, False])
async def test_nothing_is_left_of_a_deleted_nodeprepull_after_a_loss_of_the_api_server(lost: bool) -> None:
    """Its deletion was seen, and a backup restored before it was written again: that may lack the owners of its images."""
    _, standby, leader = leading()
    standby.world.nodes.update(nodes("n1"))
    added = owned_by(1)
    standby.intake.node_prepull(added)
    standby.intake.node_prepull(Change("deleted", added.object, added.object, witnessed=True))
    await leader._list()
    await leader._planner.plan(PLAN)
    assert standby.world.leftover
    if lost:
        standby.node_prepulls.sight.regained = time.monotonic()
    await leader._list()
    assert bool(standby.world.leftover) is not lost


@pytest.mark.parametrize("lost", [True, False])
async def test_after_a_loss_of_the_api_server_a_tag_means_what_the_statuses_say(lost: bool) -> None:
    """It was resolved anew after a backup was made: what nodes hold by the backup would be deleted as not meant."""
    api, standby, leader = leading()
    standby.world.nodes.update(nodes("n1"))
    api.objects = [resolved(digest(1))]
    await leader._list()
    await leader._planner.plan(PLAN)
    later = Resolution("r.io/a:1", digest(2), leader._resolver.resolutions["r.io/a:1"].platforms)
    leader._resolver.resolutions["r.io/a:1"] = later
    if lost:
        standby.node_prepulls.sight.regained = time.monotonic()
    await leader._statuses.write(("shop", "web"))
    told = api.objects[0]["status"]["images"][0]["digest"]
    assert told == digest(1 if lost else 2), "nor does a status say otherwise meanwhile"
    assert standby.list_due() is lost
    await leader._list()
    await leader._planner.plan(PLAN)
    assert leader._resolver.resolutions["r.io/a:1"].digest == told


def test_nothing_is_listed_for_a_loss_before_something_was_to_be_written() -> None:
    """There are networks that cut each watch every minute."""
    _, standby, _ = leading()
    for informer in standby.informers:
        informer.synced.set()
    standby.world.listed = standby.world.planned_of = 1
    standby.node_prepulls.sight.regained = inf
    assert not standby.list_due()
    assert all(informer.synced.is_set() for informer in standby.informers)
    standby.node_prepulls.sight.regained = 7
    assert not standby.list_due()
    assert not standby.may_write()
    assert standby.list_due()
    standby.world.planned_of = 8
    assert not standby.list_due()
    standby.node_prepulls.sight.regained = 9
    assert not standby.list_due(), "that was before"


@pytest.mark.parametrize(("retry_after", "pause"), [(None, 0.1), (0.5, 0.5)])
async def test_a_list_that_fails_is_not_asked_for_in_a_tight_loop(
    monkeypatch: pytest.MonkeyPatch, retry_after: float | None, pause: float
) -> None:
    api, standby, leader = leading()
    monkeypatch.setattr("imageprepull.controller.leader.RESYNC_RETRY", 0.1)
    api.error = ApiError(429, "TooManyRequests", "busy", retry_after=retry_after)
    standby.node_prepulls.sight.regained = time.monotonic()
    assert not standby.may_write()
    resyncing = asyncio.create_task(leader._resync())
    began = time.monotonic()
    async with asyncio.timeout(30):
        while api.lists < 3:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
    assert time.monotonic() - began >= 2 * pause
    api.error = None
    async with asyncio.timeout(30):
        await standby.queues.plan.take()
    assert api.lists <= 4
    resyncing.cancel()


async def test_everything_is_listed_when_it_is_time_and_soon_again_when_that_fails_without_any_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api, standby, leader = leading()
    monkeypatch.setattr("imageprepull.controller.leader.SECOND_LIST", 0.01)
    monkeypatch.setattr("imageprepull.controller.leader.RESYNC_RETRY", 0.01)
    api.error = ApiError(403, "Forbidden", "no")
    resyncing = asyncio.create_task(leader._resync())
    async with asyncio.timeout(30):
        while api.lists < 3:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
        assert not standby.list_due()
        api.error = None
        await standby.queues.plan.take()
    resyncing.cancel()


@pytest.mark.parametrize(
    ("problem", "refused", "again"),
    [("", False, True), ("403 Forbidden", True, True), ("connection refused", False, False)],
)
async def test_what_was_out_of_sight_is_listed_again_with_the_rest_and_once(
    problem: str, refused: bool, again: bool
) -> None:
    """Nodes may be known as they were before a restore that only the watch of NodePrepulls has noticed."""
    _, standby, _ = leading()
    nodes, node_prepulls, _ = standby.informers
    for informer in standby.informers:
        informer.synced.set()
    node_prepulls.sight.regained, node_prepulls.sight.problem, node_prepulls.sight._refused = (
        inf,
        problem,
        refused,
    )
    assert not standby.may_write()
    assert not standby.list_due()
    assert [informer.synced.is_set() for informer in standby.informers] == [not again, not again, True]
    assert (nodes.sight.regained == inf) is again
    # Nodes are there first.
    nodes.synced.set()
    nodes.sight.regained = 7
    assert not standby.list_due()
    assert nodes.sight.regained == 7 or not again
