"""From the annotation on an ImagePrepull to the nonces of entries, and to the answer in its status."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from imageprepull.controller import retries, retry_answer
from imageprepull.controller.aggregate_node import Cluster, view
from imageprepull.controller.assign import Admission
from imageprepull.controller.images import BadSpec, WantedImage
from imageprepull.controller.orders import InvalidOrder
from imageprepull.controller.resolution import Resolution
from imageprepull.controller.retries import (
    ANNOTATION,
    RetryOrder,
    handed_on,
    has_failed,
    is_over,
    nonces,
    read_order,
    standing,
)
from imageprepull.controller.world import KnownPrepull
from imageprepull.oci.reference import Reference
from imageprepull.resources import bounds
from imageprepull.resources.base import Metadata
from imageprepull.resources.imageprepull import RetryStatus
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodeImageStatus, NodePrepull
from tests.unit.agent_doubles import image
from tests.unit.controller_doubles import candidate, digest, node_prepull, nodes, report, resolution

WEB, JOB = "docker.io/library/web:1", "docker.io/library/job:1"
ORDER = RetryOrder("n1")
NOTHING = Cluster({}, {}, {})


def admitted(reference: str, number: int | None = 1) -> Admission:
    wanted = WantedImage(reference, Reference.parse(reference))
    return Admission(wanted, digest(number) if number else "")


# Reading.


def test_without_annotation_there_is_no_order() -> None:
    assert read_order({"other": "x"}) is None


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("n1", ORDER),
        (f" n1  {WEB} ", RetryOrder("n1", reference=WEB)),
        ("n1 node=gpu-1", RetryOrder("n1", "gpu-1")),
        (f"n1 node=gpu-1 {WEB}", RetryOrder("n1", "gpu-1", WEB)),
    ],
)
def test_an_annotation_names_a_nonce_and_perhaps_a_node_and_an_image(text: str, order: RetryOrder) -> None:
    assert read_order({ANNOTATION: text}) == order
    assert read_order({ANNOTATION: str(order)}) == order


@pytest.mark.parametrize("text", ["", "-x", "a/b", "n1,n2", "x" * 21, f"n1 {WEB} {JOB}", f"n1 {WEB} node=b"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidOrder, match=ANNOTATION):
        read_order({ANNOTATION: text})


def test_as_many_nonces_as_an_entry_may_carry_fit_into_the_schema() -> None:
    longest = ",".join(["x" * retries.LONGEST_NONCE] * retries.ORDERS_AT_ONCE)
    assert len(longest) <= bounds.NONCE


def asked(text: str, answer: RetryStatus | None = None) -> bool:
    prepull = candidate().prepull
    prepull = msgspec.structs.replace(
        prepull,
        metadata=msgspec.structs.replace(prepull.metadata, annotations={ANNOTATION: text}),
        status=msgspec.structs.replace(prepull.status, retry=answer),
    )
    return standing(prepull) is not None


def test_an_order_stands_until_it_is_answered_by_its_own_name_with_nobody_waiting() -> None:
    assert asked("n1")
    assert asked("n1", RetryStatus(nonce="n0"))
    assert asked("n1", RetryStatus(nonce="n1", waiting=1, ready=4))
    assert not asked("n1", RetryStatus(nonce="n1", ready=5))
    assert not asked("/")


def test_the_plan_sees_an_answer_as_soon_as_it_is_written() -> None:
    one = candidate()
    known = KnownPrepull("default", "one", one.uid, 1, "1", one.prepull, one)
    answered = msgspec.structs.replace(
        one.prepull, status=msgspec.structs.replace(one.prepull.status, retry=RetryStatus(nonce="n1"))
    )
    seen = known.with_status(answered, "2", answered=5.0)
    assert seen.candidate is not None
    assert (seen.resource_version, seen.answered) == ("2", 5.0)
    assert seen.candidate.prepull == seen.prepull == answered
    assert seen.candidate.images == one.images


def test_it_concerns_the_entries_of_its_node_and_image() -> None:
    admissions = [admitted(WEB, 1), admitted(JOB, 2), admitted("docker.io/library/new:1", None)]
    assert ORDER.entries("a", admissions) == {(WEB, digest(1)), (JOB, digest(2))}
    assert RetryOrder("n1", "b", WEB).entries("b", admissions) == {(WEB, digest(1))}
    assert RetryOrder("n1", "b").entries("a", admissions) == frozenset()


# Handing on.


def entry(reference: str, nonce: str = "", state: Desired = Desired.PRESENT) -> DesiredImage:
    return image(reference, digest=digest(1), nonce=nonce, state=state)


def after(
    current: Sequence[DesiredImage], states: Mapping[str, str], orders: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """The nonces by reference, when `render` has made the entries anew and knows nothing of nonces."""
    rendered = [
        msgspec.structs.replace(one, retry=msgspec.structs.replace(one.retry, nonce="")) for one in current
    ]
    reported = [report(name, 1, state) for name, state in states.items()]
    keys = {nonce: {(name, digest(1)) for name in names} for nonce, names in orders.items()}
    return {one.reference: one.retry.nonce for one in handed_on(rendered, current, reported, keys)}


def test_only_what_failed_is_asked_for_again() -> None:
    current = [entry(WEB), entry(JOB), entry("other")]
    states = {WEB: "Failed", JOB: "Ready", "other": "Failed"}
    assert after(current, states, {"n1": {WEB, JOB}}) == {WEB: "n1", JOB: "", "other": ""}


@pytest.mark.parametrize(
    ("status", "failed"),
    [
        (report(WEB, 1, "Failed"), True),
        (report(WEB, 1, "Waiting", attempts=2), True),
        (report(WEB, 1, "Waiting", next_attempt="2026-01-01T00:00:00Z"), True),
        (report(WEB, 1, "Waiting", reason="InsufficientDisk"), True),
        (report(WEB, 1, "Waiting", reason="NodeDiskPressure"), False),
        (report(WEB, 1, "Pulling", attempts=2), False),
        (report(WEB, 1, "Ready"), False),
    ],
)
def test_what_waits_for_its_next_attempt_or_for_room_has_failed_as_well(
    status: NodeImageStatus, failed: bool
) -> None:
    assert has_failed(status) == failed


def test_an_entry_is_asked_once_and_keeps_the_nonce_when_the_order_is_gone() -> None:
    assert after([entry(WEB, "n1")], {WEB: "Failed"}, {"n1": {WEB}}) == {WEB: "n1"}
    assert after([entry(WEB, "n1")], {WEB: "Failed"}, {}) == {WEB: "n1"}
    assert after([entry(WEB, "n1")], {WEB: "Ready"}, {}) == {WEB: "n1"}


def test_a_new_order_takes_the_place_of_one_that_is_over() -> None:
    assert after([entry(WEB, "n1")], {WEB: "Failed"}, {"n2": {WEB}}) == {WEB: "n2"}


def test_two_orders_on_one_image_do_not_take_turns_for_ever() -> None:
    both = {"n1": {WEB}, "n2": {WEB}}
    assert after([entry(WEB)], {WEB: "Failed"}, both) == {WEB: "n1,n2"}
    assert after([entry(WEB, "n1")], {WEB: "Failed"}, both) == {WEB: "n1,n2"}
    assert after([entry(WEB, "n2,n1")], {WEB: "Failed"}, both) == {WEB: "n2,n1"}
    many = {f"n{number}": {WEB} for number in range(1, 6)}
    assert after([entry(WEB, "n5")], {WEB: "Failed"}, many) == {WEB: "n5,n1,n2"}
    assert after([entry(WEB, "n5,n1,n2")], {WEB: "Failed"}, many) == {WEB: "n5,n1,n2"}


def test_what_is_let_go_of_or_paused_is_not_tried() -> None:
    current = [entry(WEB, state=Desired.ABSENT), entry(JOB, state=Desired.PAUSED)]
    assert after(current, {WEB: "Failed", JOB: "Failed"}, {"n1": {WEB, JOB}}) == {WEB: "", JOB: ""}


# The answer.


def answer(
    order: RetryOrder,
    *found: NodePrepull,
    admissions: Sequence[Admission] = (admitted(WEB),),
    resolutions: Mapping[str, Resolution] | None = None,
    unavailable: Collection[str] = (),
    before: RetryStatus | None = None,
    skipped: Mapping[str, Collection[str]] | None = None,
) -> RetryStatus:
    reports = {one.metadata.name: one for one in found}
    known = {WEB: resolution(WEB)} if resolutions is None else resolutions
    views = [
        view(name, "linux/amd64", admissions, known, one, agent_available=name not in unavailable)
        for name, one in reports.items()
    ]
    metadata = Metadata(name="web", annotations={ANNOTATION: str(order)})
    cluster = Cluster(nodes(*reports), reports, known, unavailable)
    given = retry_answer.answer(metadata, before, views, cluster, skipped or {})
    assert given is not None
    return given


def counts(found: RetryStatus) -> tuple[int, int, int]:
    return found.ready, found.waiting, found.failed


def node(name: str, state: str, nonce: str = "", generation: int = 1, **more: Any) -> NodePrepull:
    return node_prepull(
        name, report(WEB, 1, state, **more), entries=[entry(WEB, nonce)], generation=generation
    )


def test_a_failure_counts_only_when_the_agent_has_seen_the_order() -> None:
    before = node("b", "Failed", "n1", reason="NotFound")
    unseen = msgspec.structs.replace(before, metadata=msgspec.structs.replace(before.metadata, generation=2))
    assert counts(answer(ORDER, node("a", "Failed"))) == (0, 1, 0)
    assert counts(answer(ORDER, unseen)) == (0, 1, 0)
    found = answer(ORDER, node("a", "Ready"), node("b", "Failed", "n1", reason="NotFound", message="404"))
    assert counts(found) == (1, 0, 1)
    assert (found.nonce, found.example_node, found.reason, found.message) == ("n1", "b", "NotFound", "404")
    assert is_over(found, ORDER)
    assert counts(answer(ORDER, node("b", "Failed", "n0,n1", reason="NotFound"))) == (0, 0, 1)


@pytest.mark.parametrize("state", ["Waiting", "Pulling"])
def test_work_is_waited_for(state: str) -> None:
    found = answer(ORDER, node("a", state, "n1"), node("b", "Ready"))
    assert counts(found) == (1, 1, 0)
    assert not is_over(found, ORDER)


def test_a_node_without_an_agent_is_not_waited_for() -> None:
    found = answer(ORDER, node("a", "Pulling", "n1"), unavailable=["a"])
    assert (counts(found), found.reason) == ((0, 0, 1), "AgentUnavailable")


@pytest.mark.parametrize("reason", ["InsufficientDisk", "DiskFull", "NodeDiskPressure"])
def test_an_image_that_waits_for_room_is_not_waited_for(reason: str) -> None:
    message = "not begun: 54 MB needed in /run, 50 MB free, and 1.07 GB of 1.05 GB must stay free"
    short = node("b", "Waiting", "n1", reason=reason, message=message)
    found = answer(ORDER, node("a", "Ready"), short)
    assert (counts(found), found.blocked) == ((1, 0, 0), 1)
    assert (found.example_node, found.example_image) == ("b", WEB)
    assert (found.reason, found.message) == (reason, message)
    assert is_over(found, ORDER)


def test_room_is_looked_for_anew_before_an_order_ends_for_want_of_it() -> None:
    found = answer(ORDER, node("a", "Waiting", reason="InsufficientDisk"))
    assert (counts(found), found.blocked) == ((0, 1, 0), 0), "the agent has not got the order"
    tried = node("a", "Waiting", "n1", reason="InsufficientDisk")
    unseen = msgspec.structs.replace(tried, metadata=msgspec.structs.replace(tried.metadata, generation=2))
    assert counts(answer(ORDER, unseen)) == (0, 1, 0), "this was said before the order came"


def test_a_node_under_pressure_pulls_nothing_so_its_images_get_no_order_to_wait_for() -> None:
    assert answer(ORDER, node("a", "Waiting", reason="NodeDiskPressure")).blocked == 1


def test_what_fails_beside_it_and_what_is_in_work_come_first() -> None:
    both = [admitted(WEB, 1), admitted(JOB, 2)]
    known = {WEB: resolution(WEB), JOB: resolution(JOB, 2)}

    def beside(state: str) -> RetryStatus:
        entries = [entry(WEB, "n1"), image(JOB, digest=digest(2), nonce="n1")]
        short = report(WEB, 1, "Waiting", reason="InsufficientDisk")
        other = report(JOB, 2, state, reason="NotFound")
        one = node_prepull("a", short, other, entries=entries)
        return answer(ORDER, one, admissions=both, resolutions=known)

    assert (counts(beside("Pulling")), beside("Pulling").blocked) == ((0, 1, 0), 0)
    assert (counts(beside("Failed")), beside("Failed").blocked) == ((0, 0, 1), 0)
    assert (beside("Failed").example_image, beside("Failed").reason) == (JOB, "NotFound")
    assert (counts(beside("Ready")), beside("Ready").blocked) == ((0, 0, 0), 1)
    one_each = answer(ORDER, node("a", "Waiting", reason="NodeDiskPressure"), node("b", "Failed", "n1"))
    assert (counts(one_each), one_each.blocked, one_each.example_node) == ((0, 0, 1), 1, "b")


def omitting(generation: int = 1) -> NodePrepull:
    """A node whose bounded status has no place for WEB."""
    full = node_prepull("a", report(JOB, 2, "Failed"), entries=[entry(WEB, "n1")])
    status = msgspec.structs.replace(full.status, images_omitted=3)
    metadata = msgspec.structs.replace(full.metadata, generation=generation)
    return msgspec.structs.replace(full, status=status, metadata=metadata)


def test_an_image_that_a_nodes_status_leaves_out_is_not_waited_for() -> None:
    found = answer(ORDER, omitting())
    assert (counts(found), found.blocked, found.reason) == ((0, 0, 0), 1, "ReportOmitted")
    assert (found.example_node, found.example_image) == ("a", WEB)
    assert "leaves out 3 images" in found.message
    assert counts(answer(ORDER, omitting(generation=2))) == (0, 1, 0), "the next status may have it"


def test_a_skipped_node_is_answered_for_only_when_it_is_named() -> None:
    skipped = {"NodeDiskPressure": ["b"]}
    named = answer(RetryOrder("n1", "b"), node("a", "Ready"), skipped=skipped)
    assert (counts(named), named.blocked) == ((0, 0, 0), 1)
    assert (named.example_node, named.reason) == ("b", "NodeDiskPressure")
    assert "skipped" in named.message
    everywhere = answer(ORDER, node("a", "Ready"), skipped=skipped)
    assert (counts(everywhere), everywhere.blocked) == ((1, 0, 0), 0)


def test_a_tag_counts_as_failed_when_the_registry_has_answered_anew() -> None:
    bare = node_prepull("a")
    unresolved = [admitted(WEB, None)]
    pending = {WEB: Resolution(WEB)}
    assert counts(answer(ORDER, bare, admissions=unresolved, resolutions=pending)) == (0, 1, 0)
    busy = {WEB: Resolution(WEB, reason="Throttled")}
    assert counts(answer(ORDER, bare, admissions=unresolved, resolutions=busy)) == (0, 1, 0)
    refused = {WEB: Resolution(WEB, reason="NotFound", message="404", permanent=True)}
    found = answer(ORDER, bare, admissions=unresolved, resolutions=refused)
    assert (counts(found), found.reason, found.message) == ((0, 0, 1), "NotFound", "404")


def test_other_nodes_and_images_do_not_count() -> None:
    both = [admitted(WEB), admitted(JOB)]
    two = node("a", "Ready"), node("b", "Pulling")
    assert counts(answer(replace(ORDER, node="a"), *two)) == (1, 0, 0)
    assert counts(answer(replace(ORDER, node="c"), *two)) == (0, 0, 0)
    assert counts(answer(replace(ORDER, node="a", reference=WEB), *two, admissions=both)) == (1, 0, 0)
    assert counts(answer(replace(ORDER, node="a"), *two, admissions=both)) == (0, 1, 0)


def test_a_last_word_stays_and_goes_with_its_annotation() -> None:
    last = RetryStatus(nonce="n1", ready=2)
    assert answer(ORDER, node("a", "Failed"), before=last) is last
    assert counts(answer(RetryOrder("n2"), node("a", "Failed"), before=last)) == (0, 1, 0)
    assert retry_answer.answer(Metadata(name="web"), last, [], NOTHING, {}) is None


def test_an_order_that_cannot_be_read_and_one_of_a_refused_spec_are_answered_with_the_reason() -> None:
    odd = Metadata(name="web", annotations={ANNOTATION: "/"})
    found = retry_answer.answer(odd, None, [], NOTHING, {})
    assert found is not None
    assert (found.nonce, found.reason) == ("", "InvalidRetry")
    assert "must begin with a word" in found.message
    bad = BadSpec("InvalidReference", "it is none")
    assert retry_answer.refused(odd, bad) == found
    asked = Metadata(name="web", annotations={ANNOTATION: "n1"})
    assert retry_answer.refused(asked, bad) == RetryStatus(
        nonce="n1", reason="InvalidReference", message="it is none"
    )
    assert retry_answer.refused(Metadata(name="web"), bad) is None


def test_nonces_of_no_order_are_none() -> None:
    assert nonces("") == []
