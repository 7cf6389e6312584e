"""Events about pins that yielded: once, on the objects whose images were pinned, by the replica that leads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from imageprepull.controller.asked import Owners
from imageprepull.controller.assign import assign
from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.pins import PinNotices, yielded
from imageprepull.controller.render import render
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import KnownPrepull, World
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import Disk, NodePrepull
from tests.unit.controller_doubles import candidate, node_prepull, nodes, resolution

CALM, SHORT = Disk(capacity=100), Disk(capacity=100, pressure=True, pins_yielded=True, message="10 GB free")


def with_disk(disk: Disk | None) -> NodePrepull:
    found = node_prepull("n1")
    return msgspec.structs.replace(found, status=msgspec.structs.replace(found.status, disk=disk))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (CALM, SHORT, True),
        (None, SHORT, True),
        (SHORT, SHORT, False),
        (SHORT, CALM, False),
        (CALM, CALM, False),
        (CALM, None, False),
    ],
)
def test_it_is_news_only_when_it_happens(before: Disk | None, now: Disk | None, expected: bool) -> None:
    assert yielded(with_disk(before), with_disk(now)) is expected


def test_what_was_so_before_this_process_began_was_told_by_another() -> None:
    assert not yielded(None, with_disk(SHORT))


def document(disk: Disk, *, pin: bool = True) -> dict[str, Any]:
    image = {"reference": "a", "digest": "sha256:1", "pin": pin, "owners": ["shop/web/uid-web"]}
    return {
        "metadata": {"name": "n1", "uid": "u", "resourceVersion": "1", "generation": 1},
        "spec": {"images": [image]},
        "status": {"disk": msgspec.to_builtins(disk)},
    }


class Told:
    """In the place of `Events`."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def tell(self, prepull: Any, notice: Any) -> None:
        self.said.append((prepull.name, notice.reason, notice.message))


@pytest.mark.parametrize(("pin", "objects"), [(True, ["web"]), (False, [])])
def test_the_objects_that_pin_something_there_are_told_once(pin: bool, objects: list[str]) -> None:
    world, told = World(), Told()
    intake = Intake(world, Queues(), Witness(interval=1))
    for name in ("web", "other"):
        known = candidate(name).prepull
        intake.prepull(
            {
                "metadata": {
                    "namespace": "shop",
                    "name": name,
                    "uid": known.metadata.uid,
                    "resourceVersion": "1",
                    "generation": 1,
                },
                "spec": {"images": [{"image": "a"}]},
            }
        )
    intake.node_prepull(Change("added", document(CALM, pin=pin), None, witnessed=True))
    intake.node_prepull(Change("modified", document(SHORT, pin=pin), None, witnessed=True))
    assert told.said == [], "who does not lead says nothing"
    intake.on_pins_yielded = PinNotices(world, told).tell  # type: ignore[arg-type]
    intake.node_prepull(Change("modified", document(CALM, pin=pin), None, witnessed=True))
    for _ in range(2):
        intake.node_prepull(Change("modified", document(SHORT, pin=pin), None, witnessed=True))
    assert [name for name, _, _ in told.said] == objects
    for _, reason, message in told.said:
        assert reason == "PinsYielded"
        assert "node n1 is short of disk" in message
        assert "10 GB free" in message


def test_whoever_an_entry_has_no_room_to_list_is_told_as_well() -> None:
    world, told = World(), Told()
    pinning = [candidate(f"o{number:03d}") for number in range(bounds.OWNERS + 1)]
    others = [candidate("z-never", pinPolicy="Never"), candidate("z-elsewhere", nodeSelector={"zone": "x"})]
    known = {image.record: resolution(image.record, 1) for one in (*pinning, *others) for image in one.images}
    world.choices = assign([*pinning, *others], nodes("n1"), known)
    for one in (*pinning, *others):
        metadata = one.prepull.metadata
        world.planned[one.uid] = one
        world.prepulls["shop", metadata.name] = KnownPrepull(
            "shop", metadata.name, one.uid, 1, "1", one.prepull, one
        )
    entries = render("n1", [], Owners(world.planned, world.choices)).images
    short = node_prepull("n1", entries=entries)
    short = msgspec.structs.replace(short, status=msgspec.structs.replace(short.status, disk=SHORT))
    PinNotices(world, told).tell(short)  # type: ignore[arg-type]
    assert sorted(name for name, _, _ in told.said) == [one.prepull.metadata.name for one in pinning]
