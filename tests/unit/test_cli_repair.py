"""What `kubectl image-prepull repair` waits for, and what it refuses to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from imageprepull.cli import repair
from imageprepull.cli.kubeconfig import Target
from imageprepull.cli.repair import NothingToRepair, named
from imageprepull.cli.repair_answer import Asked, answered, blocked, exit_code, lost, still_waiting
from imageprepull.cli.waiting import BLOCKED, DONE, FAILED, IS_IT_RUNNING
from imageprepull.controller import repairs
from imageprepull.controller.repairs import ANNOTATION, RepairOrder
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
from tests.unit.fake_api_server import FakeApiServer, serve

WHY_PAUSED = "the node is skipped for now, see status.skipped of shop/web, or a tag of its repository has no digest yet"
NOT_PASSED_ON = f"the operator has not passed it on yet: {IS_IT_RUNNING}"


def order(*references: str, only: str = "") -> Asked:
    return Asked(RepairOrder("now", only), frozenset(references or ("a",)))


def node(
    *entries: DesiredImage,
    statuses: list[tuple[str, str, str]] | None = None,
    asked: bool = False,
    generation: int = 0,
) -> NodePrepull:
    """`statuses`: (reference, state, repaired), of generation 0."""
    return NodePrepull(
        metadata=Metadata(name="n", annotations={ANNOTATION: "now"} if asked else {}, generation=generation),
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
        named([image("a", state=Desired.ABSENT)], "n", "")
    with pytest.raises(NothingToRepair, match="wants b on the node n; there are a, c"):
        named([image("a"), image("c", state=Desired.PAUSED)], "n", "b")


def test_what_an_order_is_about_is_remembered() -> None:
    entries = [image("a"), image("b", state=Desired.PAUSED), image("c", state=Desired.ABSENT)]
    assert named(entries, "n", "") == {"a", "b"}
    assert named(entries, "n", "a") == {"a"}


def test_it_waits_for_operator_agent_and_the_pull_of_what_was_broken() -> None:
    asked = node(image("a"), asked=True)
    assert still_waiting(asked, order()) == NOT_PASSED_ON
    passed = node(image("a", repair="now"), asked=True, statuses=[("a", "Ready", "before")])
    assert still_waiting(passed, order()) == "the agent has not checked a yet"
    broken = node(image("a", repair="now"), asked=True, statuses=[("a", "Pulling", "now")])
    assert still_waiting(broken, order()) == "a is Pulling"
    assert [found.reference for found in answered(broken, order())] == ["a"]
    done = node(image("a"), statuses=[("a", "Ready", "now")])
    assert still_waiting(done, order()) == ""


def test_other_images_do_not_keep_it_waiting() -> None:
    two = node(
        image("a", repair="now"),
        image("b", repair="now"),
        statuses=[("a", "Ready", "now"), ("b", "Pulling", "")],
    )
    assert still_waiting(two, order(only="a")) == ""
    assert still_waiting(two, order("a", "b")) == "the agent has not checked b yet"


def test_an_image_that_failed_is_an_answer() -> None:
    assert still_waiting(node(image("a"), statuses=[("a", "Failed", "now")]), order()) == ""


def test_an_image_that_could_not_be_pulled_is_an_answer_though_nobody_compared_it() -> None:
    failed = node(image("a", repair="now"), asked=True, statuses=[("a", "Failed", "")])
    assert still_waiting(failed, order()) == ""
    assert [found.reference for found in answered(failed, order())] == ["a"]
    ended = node(image("a"), statuses=[("a", "Failed", "")])
    assert [found.reference for found in answered(ended, order())] == ["a"], "the operator may be faster"
    assert answered(ended, order("b", only="b")) == []


UNSEEN = {"asked": True, "generation": 1}


@pytest.mark.parametrize(
    ("entry", "what", "waiting"),
    [
        (image("a"), {"asked": True}, NOT_PASSED_ON),
        (image("a", repair="now"), UNSEEN, "the agent has not checked a yet"),
        # The operator has taken the order away, and then the word for it out of the entry.
        (image("a"), {"generation": 1}, "the agent has not checked a yet"),
    ],
    ids=["not passed on", "not seen", "over, and the spec written since not seen"],
)
def test_a_failure_from_before_the_order_is_no_answer(
    entry: DesiredImage, what: dict[str, Any], waiting: str
) -> None:
    before = node(entry, statuses=[("a", "Failed", "")], **what)
    assert still_waiting(before, order()) == waiting
    assert answered(before, order()) == []
    assert lost(before, order()) == []


def test_a_failure_after_the_comparison_is_an_answer_whatever_was_written_since() -> None:
    after = node(image("a", repair="now"), statuses=[("a", "Failed", "now")], asked=True, generation=1)
    assert still_waiting(after, order()) == ""
    assert [found.reference for found in answered(after, order())] == ["a"]


def test_an_order_that_is_not_passed_on_makes_think_of_an_older_crd() -> None:
    said = still_waiting(node(image("a"), asked=True), order())
    assert "is it running?" in said
    assert "CRDs may be older than it" in said
    assert "apply the files of crds/" in said


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
    assert still_waiting(known, order()) == ""
    assert blocked(known, order()) == ["b: InsufficientDisk: 54 MB needed"]
    assert blocked(known, order(only="a")) == []


def test_an_image_that_the_status_leaves_out_is_named_and_not_waited_for() -> None:
    known = short_of_room(omitted=2)
    assert still_waiting(known, order()) == ""
    (said,) = blocked(known, order())
    assert said.startswith("b: ReportOmitted: ")
    assert "leaves out 2 images" in said


@pytest.mark.parametrize("omitted", [0, 2])
def test_what_a_node_said_before_the_order_came_ends_nothing(omitted: int) -> None:
    known = short_of_room(omitted=omitted, generation=1)
    assert still_waiting(known, order()) == "the agent has not checked b yet"
    assert blocked(known, order()) == []


@pytest.mark.parametrize(
    ("states", "stuck", "missed", "code"),
    [
        (["Ready", "Ready"], [], [], DONE),
        (["Ready", "Failed"], [], [], FAILED),
        (["Ready", "Paused"], [], [], FAILED),
        (["Ready", "Waiting"], ["b"], [], BLOCKED),
        (["Failed", "Waiting"], ["b"], [], FAILED),
        (["Ready"], [], ["b"], FAILED),
        (["Ready"], ["b"], ["c"], FAILED),
        ([], ["b"], [], BLOCKED),
        ([], [], [], FAILED),
    ],
)
def test_the_exit_code_tells_what_failed_from_what_has_to_wait(
    states: list[str], stuck: list[str], missed: list[str], code: int
) -> None:
    answers = [NodeImageStatus(reference="a", digest="", state=state) for state in states]
    assert exit_code(answers, stuck, missed) == code


def test_an_image_that_is_ordered_later_is_waited_for_and_one_that_never_was_is_not() -> None:
    later = image("b", repair="now", digest="sha256:" + "b" * 64)
    both = node(image("a"), later, statuses=[("a", "Ready", "now")])
    assert still_waiting(both, order()) == "the agent has not checked b yet"
    coming = node(image("a", repair="now"), image("b"), statuses=[("a", "Ready", "now")], asked=True)
    assert still_waiting(coming, order()) == "the agent has not checked b yet", "as long as the order stands"
    over = node(image("a"), image("b"), statuses=[("a", "Ready", "now")])
    assert still_waiting(over, order()) == ""
    assert lost(over, order()) == []


@pytest.mark.parametrize(("asked", "stands"), [(True, "; the order stands until that ends"), (False, "")])
def test_of_a_paused_image_it_is_said_whether_the_order_stands(asked: bool, stands: str) -> None:
    """A stray pin's, say, that nobody owns."""
    known = node(image("a", state=Desired.PAUSED), asked=asked)
    said = f"a: Paused: the node is skipped for now, or a tag of its repository has no digest yet{stands}"
    assert blocked(known, order()) == [said]


def test_a_reference_that_means_another_digest_by_now_is_not_gone() -> None:
    moved = node(image("a"), image("a", digest="sha256:" + "b" * 64, state=Desired.ABSENT))
    assert lost(moved, order()) == ["a: not compared: the order was taken away"]
    compared = node(image("a"), statuses=[("a", "Ready", "now")])
    assert lost(compared, order()) == []


DIGEST = image("a").digest


def entry(state: str = "Present", repair: str = "") -> dict[str, Any]:
    owners = ["shop/web/uid-1"]
    return {"reference": "a", "digest": DIGEST, "state": state, "repair": repair, "owners": owners}


def report(state: str, **fields: str) -> dict[str, Any]:
    return {"images": [{"reference": "a", "digest": DIGEST, "state": state, **fields}]}


@dataclass
class Asking:
    """A `repair` at work, and what the operator and the agent make of its order."""

    server: FakeApiServer
    task: asyncio.Task[int]

    @property
    def nonce(self) -> str:
        (body,) = [body for body in self.server.bodies if body]
        found: str = body["metadata"]["annotations"][ANNOTATION]
        return found.partition(" ")[0]

    async def now(self, *entries: dict[str, Any], generation: int = 0, **status: Any) -> None:
        await self.server.put("n1", generation=generation, spec={"images": list(entries)}, status=status)

    async def end(self) -> int:
        async with asyncio.timeout(30):
            return await self.task


@asynccontextmanager
async def asking(state: str = "Present", seconds: float = 0) -> AsyncIterator[Asking]:
    async with serve() as server:
        await server.put("n1", spec={"images": [entry(state)]}, status=report("Ready"))
        task = asyncio.create_task(repair.repair(Target(server.access(), "default"), "n1", "", seconds))
        try:
            await server.until_asked("WATCH", 1)
            yield Asking(server, task)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_a_whole_image_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    async with asking() as it:
        await it.now(entry(repair=it.nonce), **report("Ready"))
        await it.now(
            entry(repair=it.nonce), **report("Ready", repaired=it.nonce, repairResult="2 layers are whole")
        )
        assert await it.end() == DONE
    assert capsys.readouterr() == ("a: 2 layers are whole\n", "")


@pytest.mark.parametrize("state", ["Ready", "Waiting"])
@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("BrokenChain", "the layer sha256:1 cannot be replaced while container c1 stands on it"),
        ("InternalError", "KeyError: 'x'"),
    ],
)
async def test_an_image_that_could_not_be_compared_ends_with_1_whatever_its_state(
    state: str, reason: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking() as it:
        await it.now(entry(repair=it.nonce), **report("Ready"))
        answer = {"repairReason": reason, "repairResult": f"{reason}: {message}"}
        await it.now(entry(repair=it.nonce), **report(state, repaired=it.nonce, **answer))
        assert await it.end() == FAILED
    assert capsys.readouterr() == ("", f"error: a: {reason}: {message}\n")


NO_ROOM_TO_COMPARE = {
    "repairReason": "InsufficientDisk",
    "repairResult": "InsufficientDisk: not enough room: 54 MB needed",
}


async def test_an_image_that_cannot_be_compared_for_want_of_room_ends_with_4(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with asking() as it:
        await it.now(entry(repair=it.nonce), **report("Ready", **NO_ROOM_TO_COMPARE))
        assert await it.end() == BLOCKED
        assert ANNOTATION in it.server.objects["", "n1"]["metadata"]["annotations"]
    said = (
        "not now: a: InsufficientDisk: not enough room: 54 MB needed; the order stands until there is room\n"
    )
    assert capsys.readouterr() == ("", said)


async def test_a_want_of_room_from_before_the_order_does_not_end_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with asking() as it:
        passed_on = entry(repair=it.nonce)
        await it.now(entry(repair="before"), generation=1, **report("Ready", **NO_ROOM_TO_COMPARE))
        await it.now(passed_on, generation=2, **report("Ready", **NO_ROOM_TO_COMPARE), observedGeneration=1)
        whole = report("Ready", repaired=it.nonce, repairResult="2 layers are whole")
        await it.now(passed_on, generation=2, **whole, observedGeneration=2)
        assert await it.end() == DONE
    assert capsys.readouterr() == ("a: 2 layers are whole\n", "")


async def test_an_image_that_could_not_be_pulled_is_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    async with asking() as it:
        await it.now(entry(repair=it.nonce), **report("Failed", reason="NotFound", message="404"))
        assert await it.end() == FAILED
    assert capsys.readouterr() == ("", "error: a: not pulled: NotFound: 404\n")


async def test_an_image_that_is_paused_meanwhile_was_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    async with asking() as it:
        await it.now(entry("Paused"), **report("Paused"))
        assert await it.end() == BLOCKED
    said = f"not now: a: Paused: {WHY_PAUSED}; the order stands"
    assert capsys.readouterr() == ("", f"{said} until that ends\n")


async def test_an_image_that_was_compared_and_is_paused_then_waits_for_nothing_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with asking() as it:
        await it.now(entry("Paused"), **report("Paused", repaired=it.nonce, repairResult="it was broken"))
        assert await it.end() == BLOCKED
    out, err = capsys.readouterr()
    assert out == "a: it was broken\n"
    assert err == f"not now: a: Paused: {WHY_PAUSED}\n"


async def test_an_image_that_is_paused_already_is_ordered_and_not_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serve() as server:
        await server.put("n1", spec={"images": [entry("Paused")]}, status=report("Paused"))
        assert await repair.repair(Target(server.access(), "default"), "n1", "", 30) == BLOCKED
        assert ANNOTATION in server.objects["", "n1"]["metadata"]["annotations"]
    assert "not now: a: Paused: " in capsys.readouterr().err


@pytest.mark.parametrize("entries", [[entry("Absent")], []])
async def test_an_image_that_is_let_go_of_meanwhile_was_not_checked(
    entries: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking() as it:
        await it.now(*entries, **report("Absent"))
        assert await it.end() == FAILED
    assert capsys.readouterr() == ("", "error: a: no ImagePrepull wants it on the node any more\n")


@pytest.mark.parametrize(
    ("annotation", "why"),
    [("other", "another repair has taken this one's place"), (None, "the order was taken away")],
)
async def test_an_order_that_is_gone_before_the_comparison_ends_with_the_reason(
    annotation: str | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking() as it:
        await it.server.annotate("n1", {ANNOTATION: annotation})
        assert await it.end() == FAILED
    assert capsys.readouterr() == ("", f"error: a: not compared: {why}\n")


async def test_an_order_that_is_gone_is_waited_for_while_the_entry_carries_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with asking() as it:
        await it.now(entry(repair=it.nonce), **report("Ready"))
        await it.server.annotate("n1", {ANNOTATION: None})
        await it.now(
            entry(repair=it.nonce), **report("Ready", repaired=it.nonce, repairResult="2 layers are whole")
        )
        assert await it.end() == DONE


async def test_a_failure_from_before_the_order_does_not_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with asking() as it:
        passed_on = entry(repair=it.nonce)
        await it.now(passed_on, generation=1, **report("Failed", reason="NotFound", message="old"))
        whole = report("Ready", repaired=it.nonce, repairResult="2 layers are whole")
        await it.now(passed_on, generation=1, **whole, observedGeneration=1)
        assert await it.end() == DONE
    assert capsys.readouterr() == ("a: 2 layers are whole\n", "")
