"""From what nodes were told by registries to what all nodes are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from imageprepull.controller.clock import rfc3339
from imageprepull.controller.dirty import Rate
from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.node_writer import NodeWriter
from imageprepull.controller.registries import behind, has_work, ordered_holds, own_holds, standing
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds
from imageprepull.resources.base import Metadata
from imageprepull.resources.nodeprepull import (
    ImageSummary,
    NodePrepull,
    NodePrepullSpec,
    NodePrepullStatus,
    RegistryHold,
    RegistryStatus,
)
from tests.unit.controller_doubles import nodes

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return rfc3339(NOW + timedelta(seconds=seconds))


def told(host: str, seconds: float, state: str = "Throttled", credential: str = "") -> NodePrepullStatus:
    line = RegistryStatus(host=host, state=state, until=at(seconds), credential_ref=credential)
    return NodePrepullStatus(registries=[line])


def hold(host: str, seconds: float) -> RegistryHold:
    return RegistryHold(host=host, not_before=at(seconds))


def test_the_latest_time_that_any_node_was_told_counts_for_all() -> None:
    reports = [told("hub", 30), told("hub", 90), told("hub", 60), told("ghcr", 5), NodePrepullStatus()]
    assert ordered_holds(reports, NOW) == [hold("ghcr", 5), hold("hub", 90)]


def test_the_operator_keeps_to_what_nodes_were_told_and_to_what_it_told_them() -> None:
    def node(status: NodePrepullStatus, *orders: RegistryHold) -> NodePrepull:
        return NodePrepull(
            metadata=Metadata(name="n"), spec=NodePrepullSpec(registries=list(orders)), status=status
        )

    found = own_holds(
        [
            node(told("hub", 30)),
            node(NodePrepullStatus(), hold("hub", 90), hold("over", -1)),
            node(told("ghcr", 60, "Held"), hold("ghcr", 60)),
            node(told("quay", 3 * 3600)),
        ],
        NOW,
    )
    assert {host: until - NOW.timestamp() for host, until in found.items()} == {
        "hub": 90,
        "ghcr": 60,
        "quay": 3600,
    }


@pytest.mark.parametrize(
    "report",
    [
        told("hub", -1),
        told("hub", 0),
        told("hub", 60, "Held"),
        told("hub", 60, "Open"),
        told("hub", 60, credential="shop/secret"),
        NodePrepullStatus(registries=[RegistryStatus(host="hub", state="Throttled")]),
        NodePrepullStatus(registries=[RegistryStatus(host="hub", state="Throttled", until="soon")]),
    ],
)
def test_what_is_over_or_ours_or_somebody_elses_orders_nothing(report: NodePrepullStatus) -> None:
    assert ordered_holds([report], NOW) == []


def test_a_clock_that_is_wrong_stops_nobody_for_days() -> None:
    assert ordered_holds([told("hub", 86400 * 365)], NOW) == [hold("hub", 3600)]


def test_no_more_orders_than_the_schema_takes_and_the_longest_stay() -> None:
    reports = [told(f"host{number:03}", number + 1) for number in range(bounds.REGISTRIES + 2)]
    found = ordered_holds(reports, NOW)
    assert len(found) == bounds.REGISTRIES
    assert found[0] == hold("host002", 3)


def test_an_order_is_never_shortened_and_leaves_when_it_is_over() -> None:
    current = [hold("long", 90), hold("short", 10), hold("over", -1)]
    wanted = [hold("long", 30), hold("new", 5), hold("short", 20)]
    assert standing(current, wanted, NOW) == [hold("long", 90), hold("new", 5), hold("short", 20)]


def test_only_an_order_that_is_missing_or_longer_is_worth_a_write() -> None:
    assert behind([], [hold("hub", 5)])
    assert behind([hold("hub", 4)], [hold("hub", 5)])
    assert not behind([hold("hub", 5), hold("over", -5)], [hold("hub", 5)])
    assert not behind([hold("hub", 9)], [hold("hub", 5)])
    assert not behind([hold("over", -5)], [])


async def test_nodes_with_work_are_told_at_once_and_others_with_their_next_spec() -> None:
    world, queues = World(), Queues()
    intake = Intake(world, queues, Witness(interval=0))
    until = rfc3339(datetime.now(UTC) + timedelta(minutes=5))
    known = {"host": "hub", "notBefore": until}
    intake.node_prepull(added("busy", {"summary": {"waiting": 1}}))
    intake.node_prepull(added("knows", {"summary": {"waiting": 1}}, registries=[known]))
    intake.node_prepull(added("idle", {"summary": {"ready": 3}}))
    assert await drained(queues) == {"busy", "knows", "idle"}
    line = {"host": "hub", "state": "Throttled", "until": until}
    intake.node_prepull(added("told", {"registries": [line]}))
    assert await drained(queues) == {"told", "busy"}
    intake.node_prepull(added("told", {"registries": [line], "summary": {"waiting": 1}}))
    assert await drained(queues) == {"told"}, "no news of registries"


async def drained(queues: Queues) -> set[str]:
    found = set()
    while len(queues.nodes):
        found.add(await queues.nodes.take())
    for name in found:
        queues.nodes.done(name)
    return found


def added(name: str, status: dict[str, object], **spec: object) -> Change:
    metadata = {"name": name, "uid": name, "resourceVersion": "1"}
    return Change("added", {"metadata": metadata, "spec": spec, "status": status}, None, witnessed=True)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (None, False),
        (ImageSummary(ready=3), False),
        (ImageSummary(pulling=1), True),
        (ImageSummary(waiting=1), True),
        (ImageSummary(failed=1), True),
    ],
)
def test_a_node_has_work_while_an_image_is_not_ready(summary: ImageSummary | None, expected: bool) -> None:
    assert has_work(NodePrepullStatus(summary=summary)) is expected


class Api:
    """A FAKE API server for one apply: it serves what it was given."""

    def __init__(self) -> None:
        self.applied: list[dict[str, Any]] = []

    async def apply(self, kind: object, name: str, body: dict[str, Any], **_: object) -> dict[str, Any]:
        self.applied.append(body)
        return {
            **body,
            "metadata": {**body["metadata"], "uid": name, "resourceVersion": str(1 + len(self.applied))},
        }


async def test_the_order_is_written_once_into_the_spec_of_a_node_that_pulls() -> None:
    api = Api()
    standby = Standby(cast("Any", api), OperatorSettings(access=cast("Any", None), identity="one"))
    world, writer = standby.world, NodeWriter(cast("Any", api), standby, Rate(1000))
    until = rfc3339(datetime.now(UTC) + timedelta(minutes=5))
    line = {"host": "hub", "state": "Throttled", "until": until}
    entry = {"reference": "docker.io/library/a:1", "digest": "sha256:" + "a" * 64, "owners": ["shop/web/1"]}
    owner = [{"apiVersion": "v1", "kind": "Node", "name": "busy", "uid": "uid-busy"}]
    world.nodes.update(nodes("busy", "told", "idle"))
    standby.intake.node_prepull(added("told", {"registries": [line]}))
    for name, images in (("busy", [entry]), ("idle", [])):
        change = added(name, {}, images=images)
        change.object["metadata"]["ownerReferences"] = [{**owner[0], "name": name, "uid": f"uid-{name}"}]
        standby.intake.node_prepull(change)
        for _ in range(2):
            await writer.write(name)
    (body,) = api.applied
    assert body["metadata"]["name"] == "busy"
    assert body["spec"]["registries"] == [{"host": "hub", "notBefore": until}]
    assert [image["reference"] for image in body["spec"]["images"]] == [entry["reference"]]


async def test_a_node_whose_kubelet_ignores_pins_is_told_so_once_and_again_when_it_is_upgraded() -> None:
    api = Api()
    standby = Standby(cast("Any", api), OperatorSettings(access=cast("Any", None), identity="one"))
    writer = NodeWriter(cast("Any", api), standby, Rate(1000))
    entry = {"reference": "docker.io/library/a:1", "digest": "sha256:" + "a" * 64, "owners": ["shop/web/1"]}
    change = added("old", {}, images=[entry])
    owner = {"apiVersion": "v1", "kind": "Node", "name": "old", "uid": "uid-old"}
    change.object["metadata"]["ownerReferences"] = [owner]
    standby.intake.node_prepull(change)
    for version in ("v1.28.1", ""):
        standby.world.nodes.update(nodes("old", kubelet_without_pins=version))
        for _ in range(2):
            await writer.write("old")
    assert [body["spec"].get("kubeletWithoutPins", "") for body in api.applied] == ["v1.28.1", ""]
