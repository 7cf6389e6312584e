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
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds


class Api:
    """A FAKE API server, without a single ImagePrepull at first. An answer to a list waits for `arrive`."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.asked, self.arrive = asyncio.Event(), asyncio.Event()
        self.arrive.set()

    async def list(self, kind: object) -> tuple[list[dict[str, Any]], str]:
        found = list(self.objects)
        self.asked.set()
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
    api = cast("Any", Api())
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(api, settings)
    standby.intake.node_prepull(owned_by(owners))
    late = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "2", "generation": 1}
    standby.intake.prepull_event("DELETED", {"metadata": late, "spec": {"deletionPolicy": "Retain"}})
    standby.witness.read("late", found=False, trusted=True, now=0)
    await Leader(api, cast("Any", None), standby, settings)._list()
    assert standby.world.policies.retaining == remembered
    assert standby.witness.gone == remembered


@pytest.mark.parametrize(("owners", "told"), [(bounds.OWNERS, True), (bounds.OWNERS - 1, False)])
async def test_who_is_not_listed_as_an_owner_hears_of_its_nodes(owners: int, told: bool) -> None:
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", Api()), settings)
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
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
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
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
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
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
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


async def test_a_list_that_is_wanted_is_asked_for_at_once_and_the_next_plan_is_of_it() -> None:
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
    standby.node_prepulls.regained = time.monotonic()
    assert not standby.plan_stands()
    resyncing = asyncio.create_task(leader._resync())
    standby.want_plan()
    async with asyncio.timeout(5):
        await standby.queues.plan.take()
    resyncing.cancel()
    assert not standby.list_wanted.is_set()
    assert not standby.plan_stands(), "listed is not planned"
    await leader._planner.plan(PLAN)
    assert standby.plan_stands()


async def test_a_list_that_was_asked_for_before_the_api_server_came_back_is_not_enough() -> None:
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
    api.arrive.clear()
    listing = asyncio.create_task(leader._list())
    await api.asked.wait()
    standby.node_prepulls.regained = time.monotonic()
    api.arrive.set()
    await listing
    await leader._planner.plan(PLAN)
    assert not standby.plan_stands()
    standby.want_plan()
    assert standby.list_wanted.is_set()


@pytest.mark.parametrize(("refused", "lists"), [(False, 1), (True, 2)])
async def test_who_waits_for_a_list_has_it_asked_for_once_and_not_at_once_again_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, refused: bool, lists: int
) -> None:
    """Thousands of nodes may want it, again and again, of a server that is busy already."""
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", api), settings)
    leader = Leader(cast("Any", api), cast("Any", None), standby, settings)
    monkeypatch.setattr("imageprepull.controller.leader.RESYNC_RETRY", 0.1)
    standby.node_prepulls.regained = time.monotonic()
    asked = 0

    async def busy(kind: object) -> tuple[list[dict[str, Any]], str]:
        nonlocal asked
        asked += 1
        standby.want_plan()
        if refused and asked == 1:
            raise ApiError(429, "TooManyRequests", "", retry_after=0.5)
        return [], "1"

    api.list = busy  # type: ignore[method-assign]
    resyncing = asyncio.create_task(leader._resync())
    began = time.monotonic()
    standby.want_plan()
    async with asyncio.timeout(30):
        while not leader.listed:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
    took = time.monotonic() - began
    await asyncio.sleep(0.1)
    resyncing.cancel()
    assert asked == lists
    assert (took >= 0.5) is refused


@pytest.mark.parametrize(
    ("problem", "refused", "again"),
    [("", False, True), ("403 Forbidden", True, True), ("connection refused", False, False)],
)
async def test_what_was_out_of_sight_is_listed_again_with_the_rest_and_once(
    problem: str, refused: bool, again: bool
) -> None:
    """Nodes may be known as they were before a restore that only the watch of NodePrepulls has noticed."""
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(cast("Any", Api()), settings)
    nodes, node_prepulls, _ = standby.informers
    for informer in standby.informers:
        informer.synced.set()
    node_prepulls.regained, node_prepulls.problem, node_prepulls._refused = inf, problem, refused
    standby.want_plan()
    assert [informer.synced.is_set() for informer in standby.informers] == [not again, not again, True]
    assert (nodes.regained == inf) is again
    assert not standby.list_wanted.is_set()
    # Nodes are there first.
    nodes.synced.set()
    nodes.regained = 7
    standby.want_plan()
    assert nodes.regained == 7 or not again
