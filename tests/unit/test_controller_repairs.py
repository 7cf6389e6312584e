"""From the annotation to the nonce in the spec, and when the annotation has done its work."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from imageprepull.controller.orders import InvalidOrder
from imageprepull.controller.repairs import (
    ANNOTATION,
    RepairOrder,
    end_of,
    ordered,
    read_order,
)
from imageprepull.resources.base import Metadata
from imageprepull.resources.nodeprepull import (
    Desired,
    DesiredImage,
    NodeImageStatus,
    NodePrepull,
    NodePrepullSpec,
    NodePrepullStatus,
)
from tests.unit.agent_doubles import image

ORDER = RepairOrder("n1")
ENTRIES = [
    image("a"),
    image("a", digest="sha256:" + "b" * 64),
    image("b"),
    image("c", state=Desired.ABSENT),
    image("d", state=Desired.PAUSED),
]


def test_without_annotation_there_is_no_order() -> None:
    assert read_order({"other": "x"}) is None
    assert ordered(ENTRIES, None) == ENTRIES


@pytest.mark.parametrize("order", [ORDER, RepairOrder("n1", "docker.io/library/a:1")])
def test_an_order_is_read_as_it_is_written(order: RepairOrder) -> None:
    assert read_order({ANNOTATION: str(order)}) == order


def test_an_annotation_names_a_nonce_and_perhaps_one_image() -> None:
    assert read_order({ANNOTATION: "n1"}) == ORDER
    assert read_order({ANNOTATION: " n1  docker.io/library/a:1 "}) == RepairOrder(
        "n1", "docker.io/library/a:1"
    )


@pytest.mark.parametrize("text", ["", " ", "-x", "a/b", "ü", "x" * 65, "n1 " + "r" * 513])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidOrder):
        read_order({ANNOTATION: text})


def test_only_what_shall_be_present_is_checked() -> None:
    assert [entry.repair for entry in ordered(ENTRIES, ORDER)] == ["n1", "n1", "n1", "", ""]
    assert [entry.repair for entry in ordered(ENTRIES, replace(ORDER, reference="a"))] == [
        "n1",
        "n1",
        "",
        "",
        "",
    ]


def known(images: list[DesiredImage], repaired: dict[str, str], seen: int = 3) -> NodePrepull:
    statuses = [
        NodeImageStatus(reference=i.reference, digest=i.digest, state="Ready", repaired=repaired[i.reference])
        for i in images
        if i.reference in repaired
    ]
    return NodePrepull(
        metadata=Metadata(name="node", generation=3),
        spec=NodePrepullSpec(images=images),
        status=NodePrepullStatus(observed_generation=seen, images=statuses),
    )


def test_it_is_over_when_every_image_is_answered_for() -> None:
    two = ordered([image("a"), image("b")], ORDER)
    assert end_of(ORDER, known(two, {"a": "n1", "b": "n1"})) == "carried out"
    assert end_of(ORDER, known(two, {"a": "n1", "b": "n0"})) is None
    assert end_of(ORDER, known(two, {"a": "n1"})) is None
    assert end_of(ORDER, known(two, {"a": "n1", "b": "n1"}, seen=2)) is None, "of an older spec"
    assert end_of(RepairOrder("n1", "a"), known(two, {"a": "n1"})) == "carried out"


@pytest.mark.parametrize("reference", ["", "a"])
def test_what_is_paused_keeps_it_standing_until_it_can_be_compared(reference: str) -> None:
    order = RepairOrder("n1", reference)
    paused = image("a", state=Desired.PAUSED)
    assert end_of(order, known([paused], {})) is None
    assert end_of(order, known([paused, image("b")], {"b": "n1"})) is None
    assert end_of(order, known([paused], {"a": "n1"})) == "carried out", "before it was paused"
    assert ordered([image("a")], order) == [image("a", repair="n1")], "present again, it gets the order"


@pytest.mark.parametrize("entries", [[], [image("a", state=Desired.ABSENT)]])
def test_an_order_for_what_is_gone_ends_with_the_reason(entries: list[DesiredImage]) -> None:
    # Whatever the agent has seen of it.
    assert end_of(ORDER, known(entries, {}, seen=2)) == "no ImagePrepull wants an image on the node"
    other = end_of(RepairOrder("n1", "a"), known([*entries, image("b")], {"b": "n1"}))
    assert other == "no ImagePrepull wants a on the node"


def test_the_model_reads_what_the_crd_has() -> None:
    entry = msgspec.convert({"reference": "a", "digest": "d", "repair": "n1"}, DesiredImage)
    assert entry.repair == "n1"


def test_what_could_not_be_pulled_has_nothing_to_compare() -> None:
    one = ordered([image("a")], ORDER)
    failed = known(one, {"a": "n0"})
    failed.status.images[0] = msgspec.structs.replace(failed.status.images[0], state="Failed")
    assert end_of(ORDER, failed) == "carried out"
