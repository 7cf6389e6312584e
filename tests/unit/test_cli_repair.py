"""What `kubectl image-prepull repair` waits for, and what it refuses to ask."""

from __future__ import annotations

import pytest

from imageprepull.cli import repair
from imageprepull.cli.repair import (
    NothingToRepair,
    answered,
    blocked,
    check_named,
    exit_code,
    still_waiting,
)
from imageprepull.cli.waiting import BLOCKED, DONE, FAILED
from imageprepull.controller import repairs
from imageprepull.controller.repairs import ANNOTATION
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


def node(
    *entries: DesiredImage, statuses: list[tuple[str, str, str]] | None = None, asked: bool = False
) -> NodePrepull:
    """`statuses`: (reference, state, repaired)."""
    return NodePrepull(
        metadata=Metadata(name="n", annotations={ANNOTATION: "now"} if asked else {}),
        spec=NodePrepullSpec(images=list(entries)),
        status=NodePrepullStatus(
            images=[
                NodeImageStatus(reference=reference, digest=entries[0].digest, state=state, repaired=repaired)
                for reference, state, repaired in statuses or []
            ]
        ),
    )


def test_operator_and_plugin_mean_the_same_annotation() -> None:
    assert vars(repair)["ANNOTATION"] == repairs.ANNOTATION


def test_a_node_without_images_and_an_image_that_it_has_not_are_refused() -> None:
    with pytest.raises(NothingToRepair, match="no ImagePrepull wants an image on the node n"):
        check_named([image("a", state=Desired.ABSENT)], "n", "")
    with pytest.raises(NothingToRepair, match="wants b on the node n; there are a"):
        check_named([image("a")], "n", "b")
    check_named([image("a")], "n", "a")
    check_named([image("a")], "n", "")


def test_it_waits_for_operator_agent_and_the_pull_of_what_was_broken() -> None:
    asked = node(image("a"), asked=True)
    assert still_waiting(asked, "now", "") == "the operator has not passed it on yet: is it running?"
    passed = node(image("a", repair="now"), asked=True, statuses=[("a", "Ready", "before")])
    assert still_waiting(passed, "now", "") == "the agent has not checked a yet"
    broken = node(image("a", repair="now"), asked=True, statuses=[("a", "Pulling", "now")])
    assert still_waiting(broken, "now", "") == "a is Pulling"
    assert [found.reference for found in answered(broken, "now")] == ["a"]
    done = node(image("a"), statuses=[("a", "Ready", "now")])
    assert still_waiting(done, "now", "") == ""


def test_other_images_do_not_keep_it_waiting() -> None:
    two = node(image("a"), image("b"), statuses=[("a", "Ready", "now"), ("b", "Pulling", "")])
    assert still_waiting(two, "now", "a") == ""
    assert still_waiting(two, "now", "") == "the agent has not checked b yet"


def test_an_image_that_failed_is_an_answer() -> None:
    assert still_waiting(node(image("a"), statuses=[("a", "Failed", "now")]), "now", "") == ""


def test_an_image_that_could_not_be_pulled_is_an_answer_though_nobody_compared_it() -> None:
    failed = node(image("a", repair="now"), asked=True, statuses=[("a", "Failed", "")])
    assert still_waiting(failed, "now", "") == ""
    assert [found.reference for found in answered(failed, "now")] == ["a"]
    ended = node(image("a"), statuses=[("a", "Failed", "")])
    assert [found.reference for found in answered(ended, "now")] == ["a"], "the operator may be faster"
    assert answered(ended, "now", "b") == []


def short_of_room(*, repaired: str = "", omitted: int = 0, generation: int = 0) -> NodePrepull:
    """`a` is checked; `b` waits for room, or is left out of the status."""
    found = [
        NodeImageStatus(reference="a", digest=image("a").digest, state="Ready", repaired="now"),
        NodeImageStatus(
            reference="b",
            digest=image("b").digest,
            state="Waiting",
            reason="InsufficientDisk",
            message="54 MB needed",
            repaired=repaired,
        ),
    ]
    return NodePrepull(
        metadata=Metadata(name="n", annotations={ANNOTATION: "now"}, generation=generation),
        spec=NodePrepullSpec(images=[image("a", repair="now"), image("b", repair="now")]),
        status=NodePrepullStatus(images=found[:1] if omitted else found, images_omitted=omitted),
    )


@pytest.mark.parametrize("repaired", ["", "now"])
def test_an_image_that_waits_for_room_is_named_and_not_waited_for(repaired: str) -> None:
    known = short_of_room(repaired=repaired)
    assert still_waiting(known, "now", "") == ""
    assert blocked(known, "now", "") == ["b: InsufficientDisk: 54 MB needed"]
    assert blocked(known, "now", "a") == []


def test_an_image_that_the_status_leaves_out_is_named_and_not_waited_for() -> None:
    known = short_of_room(omitted=2)
    assert still_waiting(known, "now", "") == ""
    (said,) = blocked(known, "now", "")
    assert said.startswith("b: ReportOmitted: ")
    assert "leaves out 2 images" in said


@pytest.mark.parametrize("omitted", [0, 2])
def test_what_a_node_said_before_the_order_came_ends_nothing(omitted: int) -> None:
    known = short_of_room(omitted=omitted, generation=1)
    assert still_waiting(known, "now", "") == "the agent has not checked b yet"
    assert blocked(known, "now", "") == []


@pytest.mark.parametrize(
    ("states", "stuck", "code"),
    [
        (["Ready", "Ready"], [], DONE),
        (["Ready", "Failed"], [], FAILED),
        (["Ready", "Paused"], [], FAILED),
        (["Ready", "Waiting"], ["b"], BLOCKED),
        (["Failed", "Waiting"], ["b"], FAILED),
    ],
)
def test_the_exit_code_tells_what_failed_from_what_has_to_wait(
    states: list[str], stuck: list[str], code: int
) -> None:
    answers = [NodeImageStatus(reference="a", digest="", state=state) for state in states]
    assert exit_code(answers, stuck) == code
