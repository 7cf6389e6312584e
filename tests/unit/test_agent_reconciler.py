from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

import msgspec
import pytest

from imageprepull.agent.accounts import Delays
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Compared, Held, NodeError, Pulled
from imageprepull.agent.plan import key_of
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.status import image_status
from imageprepull.pulling.pins import Pin
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodeImageStatus, OnRemoval, StrayPin
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import DIGEST, FakeNode, StillClock, image

OTHER = "sha256:" + "b" * 64


@dataclass
class Bench:
    """A reconciler whose steps, time and pulls the test drives."""

    reconciler: Reconciler
    node: FakeNode
    clock: StillClock
    metrics: AgentMetrics
    wait: float | None = field(default=None)
    changes: int = 0
    """How often the reconciler said that a status would say something else."""

    async def spec(self, *images: DesiredImage) -> list[str]:
        self.reconciler.take_spec(images)
        return await self.steps()

    async def steps(self, seconds: float = 0) -> list[str]:
        """Let time pass, then step until nothing moves; what the node was asked to do, presence left out."""
        self.clock.seconds += seconds
        self.node.calls.clear()
        for _ in range(5):
            await settle()
            self.wait = await self.reconciler.step()
        await settle()
        return [call for call in self.node.calls if not call.startswith("held")]

    def states(self) -> list[str]:
        return [f"{view.desired.reference} {view.state}" for view in self.reconciler.views.values()]


async def settle() -> None:
    """Let every task run until it waits for something that only the test can give."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    node, clock, metrics = FakeNode(), StillClock(), AgentMetrics()
    async with asyncio.TaskGroup() as tasks:

        def changed() -> None:
            made.changes += 1

        reconciler = Reconciler(
            node,
            tasks,
            clock=clock,
            metrics=metrics,
            on_change=changed,
            delays=Delays(retry_base=2, retry_slow=900),
        )
        made = Bench(reconciler, node, clock, metrics)
        yield made
        await reconciler.stop_pulls()


async def test_the_lease_of_a_life_that_died_after_the_records_is_dropped_once(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a"))
    assert "abandon a" in bench.node.calls
    bench.reconciler.suspect_all()
    assert await bench.steps() == []


async def test_what_is_present_is_not_pulled_and_what_is_missing_is(bench: Bench) -> None:
    bench.node.holds.add("a")
    assert await bench.spec(image("a"), image("b")) == ["pull b"]
    assert bench.states() == ["a Ready", "b Pulling"]
    bench.node.succeed("b")
    assert await bench.steps() == []
    assert bench.states() == ["a Ready", "b Ready"]


async def test_only_who_may_be_there_or_not_is_asked_about_and_told_of(bench: Bench) -> None:
    ordered = image("b", state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
    bench.node.holds, bench.node.users = {"b", "c"}, "web"
    await bench.spec(image("a"), ordered, image("c", digest=OTHER))
    bench.changes = 0
    bench.reconciler.suspect_all()
    await bench.steps()
    assert set(bench.node.calls) == {"held c"}, "not what is being pulled, nor what is let go of"
    assert bench.changes == 0
    assert bench.reconciler.views[key_of(ordered)].backoff, "who is in use is not tried at each step"


async def test_an_image_that_cannot_be_judged_is_asked_about_when_it_is_its_turn(bench: Bench) -> None:
    bench.node.odd = {"a"}
    await bench.spec(image("a"))
    (view,) = bench.reconciler.views.values()
    for seconds, attempts in ((0, 1), (899, 1), (2, 2)):
        await bench.steps(seconds)
        assert view.backoff is not None
        assert view.backoff.attempts == attempts


async def test_an_entry_that_vanishes_while_others_are_asked_about_is_no_suspect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bench.node.held

    async def vanishing(asked: DesiredImage) -> Held:
        bench.reconciler.take_spec([image("a")])
        return await held(asked)

    monkeypatch.setattr(bench.node, "held", vanishing)
    bench.node.holds = {"a", "b"}
    await bench.spec(image("a"), image("b"))
    assert bench.states() == ["a Ready"]


async def test_success_is_believed_only_when_the_runtime_says_so(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.succeed("a")
    bench.node.holds.clear()
    assert await bench.steps() == ["pull a"]
    assert bench.states() == ["a Pulling"]


async def test_two_digests_of_one_tag_are_both_brought_and_only_one_of_them_with_the_tag(
    bench: Bench,
) -> None:
    kept = image("r/a:1", digest=OTHER, priority=1)
    newer = image("r/a:1")
    by_digest = f"r/a@{newer.digest}"
    assert sorted(await bench.spec(newer, kept)) == ["pull r/a:1", f"pull {by_digest}"]
    bench.node.succeed("r/a:1")
    bench.node.succeed(by_digest)
    assert await bench.steps() == []
    for _ in range(3):
        bench.reconciler.suspect_all()
        assert await bench.steps() == []
        assert bench.states() == ["r/a:1 Ready"] * 2
    shown = [image_status(view) for view in bench.reconciler.views.values()]
    assert [(one.digest, one.reason) for one in shown] == [(newer.digest, "HeldByDigest"), (OTHER, "")]


async def test_the_tag_comes_back_to_the_entry_that_is_left_and_that_is_no_loss(bench: Bench) -> None:
    kept, newer = image("r/a:1", digest=OTHER, priority=1), image("r/a:1")
    bench.node.holds = {"r/a:1", f"r/a@{newer.digest}"}
    await bench.spec(kept, newer)
    bench.node.holds.discard("r/a:1")
    released = [msgspec.structs.replace(kept, state=Desired.ABSENT), newer]
    assert await bench.spec(*released) == ["unpin r/a:1", "abandon r/a:1", "pull r/a:1"]
    view = bench.reconciler.views[key_of(newer)]
    assert (view.losses.count, view.backoff) == (0, None)
    bench.node.succeed("r/a:1")
    await bench.steps()
    assert image_status(view).reason == ""


async def test_the_strictest_limits_bound_the_pulls_and_priority_orders_them(bench: Bench) -> None:
    done = await bench.spec(
        image("low", parallel=4, downloads=3),
        image("high", priority=5, parallel=2),
        image("next", priority=1, parallel=9),
    )
    assert done == ["pull high", "pull next"]
    assert bench.node.downloads == 3
    bench.node.succeed("next")
    assert await bench.steps() == ["pull low"]


async def test_a_failed_pull_waits_with_the_reason_and_is_tried_again_when_due(bench: Bench) -> None:
    await bench.spec(image("a", limit=3))
    bench.node.fail("a")
    assert await bench.steps() == []
    view = next(iter(bench.reconciler.views.values()))
    assert bench.states() == ["a Waiting"]
    assert view.backoff is not None
    assert (view.backoff.reason, view.backoff.attempts) == ("RegistryUnreachable", 1)
    assert view.next_attempt == "2026-01-01T00:16:41Z"  # 1000 s after midnight, and 0.75 of 2 s.
    assert bench.wait == pytest.approx(1.5)
    assert await bench.steps(1.4) == []
    assert await bench.steps(0.2) == ["pull a"]


async def test_what_comes_due_while_a_step_is_at_something_else_is_tried_right_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events wake it at any time; a try that this step has looked at too early is not left to the next resync."""
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    bench.clock.seconds += 1.4
    assert bench.wait == pytest.approx(1.5)

    async def slow(*_: object) -> None:
        bench.clock.seconds += 1

    monkeypatch.setattr(bench.node, "unpin", slow)
    bench.reconciler.take_spec([image("a"), image("b", state=Desired.ABSENT)])
    assert await bench.reconciler.step() == 0
    assert "pull a" in await bench.steps()


async def test_an_image_that_could_not_be_judged_is_asked_about_when_it_is_due_however_long_others_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.node.odd, bench.node.holds = {"r/a"}, {"r/b"}
    await bench.spec(image("r/a"), image("r/b"))
    bench.node.odd.clear()
    bench.clock.seconds += 899.5
    assert bench.wait == 900
    held = bench.node.held

    async def slow(asked: DesiredImage) -> Held:
        bench.clock.seconds += 1
        return await held(asked)

    monkeypatch.setattr(bench.node, "held", slow)
    bench.reconciler.suspect_named({"r/b"})
    assert await bench.reconciler.step() == 0
    assert await bench.steps() == ["pull r/a"]


@pytest.mark.parametrize(
    ("reason", "given_up"), [("RegistryUnreachable", []), ("RuntimeLostLayers", ["abandon a"])]
)
async def test_after_the_limit_it_is_failed_gives_up_its_slot_and_is_tried_slowly(
    bench: Bench, reason: str, given_up: list[str]
) -> None:
    await bench.spec(image("a", limit=2, parallel=1), image("b", parallel=1))
    bench.node.fail("a", reason)
    assert await bench.steps() == ["pull b"]
    bench.node.succeed("b")
    assert await bench.steps(10) == ["pull a"]
    bench.node.fail("a", reason)
    assert await bench.steps() == given_up, "an outage, however long it lasts, costs no byte"
    assert bench.states() == ["a Failed", "b Ready"]
    assert await bench.steps(899) == []
    assert await bench.steps(2) == ["pull a"]


async def test_a_permanent_error_is_final_at_once(bench: Bench) -> None:
    await bench.spec(image("a", limit=8))
    bench.node.fail("a", "NotFound", permanent=True)
    assert await bench.steps() == ["abandon a"]
    assert bench.states() == ["a Failed"]


@pytest.mark.parametrize("other", ["waits", "paused", "at work"])
async def test_what_fails_for_good_leaves_another_reference_to_the_digest_what_that_has_fetched(
    bench: Bench, other: str
) -> None:
    await bench.spec(image("a"), image("b"))
    if other == "waits":
        bench.node.fail("a")
        await bench.steps()
    if other == "paused":
        await bench.spec(image("a", state=Desired.PAUSED), image("b"))
    bench.node.fail("b", "NotFound", permanent=True)
    assert await bench.steps() == []
    assert bench.states()[1] == "b Failed"


async def test_two_references_that_fail_for_good_do_not_keep_a_lease_for_each_other(bench: Bench) -> None:
    await bench.spec(image("a"), image("b"))
    bench.node.fail("a", "NotFound", permanent=True)
    assert await bench.steps() == []
    bench.node.fail("b", "NotFound", permanent=True)
    assert await bench.steps() == ["abandon b"]
    assert await bench.spec(image("a", nonce="again"), image("b")) == ["pull a"]
    assert await bench.spec(image("a", nonce="again")) == [], (
        "the lease of the one that vanished is pulled under"
    )


async def test_what_one_reference_has_fetched_goes_with_it_when_the_other_has_failed_for_good(
    bench: Bench,
) -> None:
    await bench.spec(image("a"), image("b"))
    bench.node.fail("a")
    bench.node.fail("b", "NotFound", permanent=True)
    assert await bench.steps() == []
    assert await bench.spec(image("b")) == ["abandon a"]


async def test_a_permanent_error_is_not_tried_again_whatever_happens_until_it_is_slowly_due(
    bench: Bench,
) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a", "NotFound", permanent=True)
    await bench.steps()
    for owners, priority in ((["shop/web/1"], 0), (["shop/web/1", "shop/other/2"], 7)):
        assert await bench.spec(image("a", owners=owners, priority=priority)) == []
    for _ in range(7):
        bench.reconciler.suspect_all()
        assert await bench.steps(seconds=100) == []
    assert bench.states() == ["a Failed"]
    shown = image_status(bench.reconciler.views["a", image("a").digest])
    assert (shown.reason, shown.attempts) == ("NotFound", 1)
    due = datetime.fromisoformat(shown.next_attempt or "")
    assert 0 < (due - bench.clock.wall()).total_seconds() <= 900 * 1.2 - 700
    assert await bench.steps(seconds=900 * 1.2 - 700) == ["pull a"]


async def test_attempts_and_the_next_one_show_and_the_waits_grow(bench: Bench) -> None:
    await bench.spec(image("a", limit=6))
    waits = []
    for attempt in range(1, 6):
        bench.node.fail("a", "RegistryUnreachable")
        await bench.steps()
        shown = image_status(bench.reconciler.views["a", image("a").digest])
        assert (shown.state, shown.reason, shown.attempts) == ("Waiting", "RegistryUnreachable", attempt)
        due = datetime.fromisoformat(shown.next_attempt or "")
        waits.append((due - bench.clock.wall()).total_seconds())
        assert await bench.steps(seconds=waits[-1] - 1) == [], "not before it is due"
        assert await bench.steps(seconds=2) == ["pull a"]
        assert image_status(bench.reconciler.views["a", image("a").digest]).next_attempt is None
    assert all(before < after for before, after in pairwise(waits))


async def test_what_the_operator_holds_back_waits_for_it_and_costs_no_attempt(bench: Bench) -> None:
    await bench.spec(image("a", limit=2))
    for _ in range(3):
        bench.node.fail("a", "RegistryHeld", retry_after=200)
        await bench.steps()
        assert bench.states() == ["a Waiting"]
        assert image_status(bench.reconciler.views["a", image("a").digest]).attempts == 0
        assert await bench.steps(seconds=199) == []
        assert await bench.steps(seconds=25) == ["pull a"]


async def test_gained_bytes_reset_the_count(bench: Bench) -> None:
    await bench.spec(image("a", limit=2))
    view = next(iter(bench.reconciler.views.values()))
    for done in (10, 20, 30):
        assert view.progress is not None
        view.progress.layers[0].done = done
        bench.node.fail("a")
        await bench.steps()
        assert view.backoff is not None
        assert (view.backoff.attempts, view.backoff.final) == (1, False)
        assert await bench.steps(5) == ["pull a"]
    bench.node.fail("a")
    assert await bench.steps() == []
    assert bench.states() == ["a Failed"]


@pytest.mark.parametrize("end", ["gone", "absent", "another digest"])
async def test_what_a_failed_image_keeps_goes_when_it_is_not_wanted_any_more(bench: Bench, end: str) -> None:
    await bench.spec(image("a", limit=1))
    bench.node.fail("a")
    assert await bench.steps() == []
    assert await bench.steps(1000) == ["pull a"]
    bench.node.fail("a")
    assert await bench.steps() == []
    bench.reconciler.freeze()
    assert await bench.steps() == [], "absence is never an order"
    if end == "gone":
        assert await bench.spec() == ["abandon a"]
    elif end == "absent":
        assert await bench.spec(image("a", state=Desired.ABSENT)) == ["unpin a", "abandon a"]
    else:
        assert sorted(await bench.spec(image("a", digest=OTHER))) == ["abandon a", "pull a"]


async def test_what_unfinished_pulls_have_kept_goes_when_no_object_has_come_back_for_it(bench: Bench) -> None:
    await bench.spec(image("a", limit=1), image("b", digest=OTHER), image("c", digest=OTHER))
    bench.node.fail("a")
    bench.node.succeed("b")
    await bench.steps()
    assert sorted(bench.states()) == ["a Failed", "b Ready", "c Pulling"]
    bench.reconciler.freeze()
    assert await bench.steps(600) == []
    bench.reconciler.freeze()
    assert await bench.steps(299) == []
    assert bench.wait == pytest.approx(1), "nobody wakes it"
    assert await bench.steps(1) == ["abandon a"]
    bench.node.fail("c")
    assert await bench.steps() == ["abandon c"], "the pull at work ends first"
    assert (await bench.steps(1000), bench.wait) == ([], None)
    assert await bench.spec(image("a")) == ["pull a"]
    bench.node.fail("a")
    await bench.steps()
    bench.reconciler.freeze()
    assert await bench.steps(899) == [], "a new object that is gone counts anew"


async def test_the_lease_of_a_paused_pull_goes_with_its_entry(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.spec(image("a", state=Desired.PAUSED)) == ["cancelled a"]
    assert await bench.spec() == ["abandon a"]
    assert await bench.steps() == []


@pytest.mark.parametrize("change", [{"nonce": "again"}, {"limit": 9}])
async def test_a_changed_entry_is_tried_at_once(bench: Bench, change: dict[str, object]) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a", permanent=True)
    await bench.steps()
    assert await bench.spec(image("a", owners=["ns/other/uid"])) == []
    assert await bench.spec(image("a", **change)) == ["pull a"]  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"nonce": "again"}, {"limit": 9}])
async def test_an_entry_that_changes_while_an_attempt_fails_is_tried_at_once(
    bench: Bench, change: dict[str, object]
) -> None:
    """That attempt went by the old words: the credentials of before, say."""
    await bench.spec(image("a"))
    assert await bench.spec(image("a", **change)) == []  # type: ignore[arg-type]
    bench.node.fail("a", "NotFound", permanent=True)
    assert await bench.steps() == ["pull a"], "and what was fetched is not given up"
    bench.node.fail("a", "NotFound", permanent=True)
    assert await bench.steps() == ["abandon a"], "it was tried by the new words"


async def test_an_order_to_retry_is_obeyed_once_and_its_disappearance_is_none(bench: Bench) -> None:
    await bench.spec(image("a", nonce="n1"))
    bench.node.fail("a", permanent=True)
    await bench.steps()
    assert await bench.spec(image("a", nonce="n1", owners=["ns/other/uid"])) == []
    assert await bench.spec(image("a")) == []
    assert await bench.spec(image("a", nonce="n2")) == ["pull a"]
    view = bench.reconciler.views["a", "sha256:" + "a" * 64]
    assert view.backoff is None, "attempts are counted anew"


async def test_a_defect_in_one_pull_fails_that_image_alone(bench: Bench) -> None:
    await bench.spec(image("a"), image("b"))
    bench.node.pulls["a"].set_exception(ZeroDivisionError("oops"))
    await bench.steps()
    assert bench.states() == ["a Waiting", "b Pulling"]
    assert bench.reconciler.views["a", "sha256:" + "a" * 64].backoff is not None


async def test_an_entry_that_vanished_stops_and_removes_nothing(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.spec() == []
    assert bench.reconciler.running
    assert await bench.spec(image("a")) == []
    assert bench.states() == ["a Pulling"]
    bench.node.succeed("a")
    await bench.steps()
    assert bench.states() == ["a Ready"]


async def test_a_gone_object_starts_and_removes_nothing(bench: Bench) -> None:
    bench.reconciler.take_spec([image("a")])
    bench.reconciler.freeze()
    assert await bench.steps() == []
    assert bench.states() == []


async def test_absent_stops_the_pull_then_unpins_once(bench: Bench) -> None:
    await bench.spec(image("a"), image("b", digest=OTHER))
    done = await bench.spec(image("a", state=Desired.ABSENT), image("b", digest=OTHER))
    assert done == ["cancelled a", "unpin a", "abandon a"]
    assert bench.states() == ["a Absent", "b Pulling"]
    bench.reconciler.suspect_all()
    assert await bench.steps() == []


async def test_a_pin_that_no_entry_names_is_reported_until_an_entry_takes_it_away(bench: Bench) -> None:
    stray = Pin("docker.io/library/old:1", OTHER)
    bench.node.other_pins = [stray]
    bench.node.holds = {"a"}
    await bench.spec(image("a"))
    assert bench.reconciler.stray_pins == [StrayPin(reference=stray.record, digest=OTHER)]
    listed = bench.node.pins_listed
    await bench.steps(seconds=200)
    assert bench.node.pins_listed == listed, "nothing happened that could change them"
    ordered = image(stray.record, digest=OTHER, state=Desired.ABSENT)
    assert await bench.spec(image("a"), ordered) == [f"unpin {stray.record}", f"abandon {stray.record}"]
    assert bench.states() == ["a Ready", f"{stray.record} Absent"]
    await bench.spec(image("a"))
    assert bench.reconciler.stray_pins == []


async def test_pins_beyond_those_that_fit_have_their_turn_when_nothing_becomes_of_the_first(
    bench: Bench,
) -> None:
    bench.node.other_pins = [Pin(f"docker.io/library/old:{number:03}", OTHER) for number in range(100)]
    await bench.spec()
    first = bench.reconciler.stray_pins
    seen = {pin.reference for pin in first}
    changes = bench.changes
    await bench.steps(seconds=800)
    assert bench.reconciler.stray_pins == first
    assert bench.changes == changes, "a status is written for each change"
    for _ in range(12):
        await bench.steps(seconds=900)
        seen |= {pin.reference for pin in bench.reconciler.stray_pins}
    assert seen == {pin.record for pin in bench.node.other_pins}
    assert bench.changes == changes + 12


async def test_the_first_pins_that_are_reported_stand_for_a_whole_turn(bench: Bench) -> None:
    """However long nothing was to be reported."""
    await bench.spec()
    await bench.steps(seconds=800)
    bench.node.other_pins = [Pin(f"docker.io/library/old:{number:03}", OTHER) for number in range(100)]
    bench.reconciler.suspect_all()
    await bench.steps()
    first = bench.reconciler.stray_pins
    await bench.steps(seconds=800)
    assert bench.reconciler.stray_pins == first


async def test_what_is_still_pulled_for_an_entry_that_vanished_is_no_stray(bench: Bench) -> None:
    reference = "docker.io/library/new:1"
    await bench.spec(image(reference))
    # Its records are written before its pull ends.
    bench.node.other_pins = [Pin(reference, image(reference).digest)]
    bench.reconciler.suspect_all()
    await bench.spec()
    assert bench.reconciler.stray_pins == []
    bench.node.succeed(reference)
    await bench.steps()
    assert [pin.reference for pin in bench.reconciler.stray_pins] == [reference]
    bench.reconciler.freeze()
    assert bench.reconciler.stray_pins == []


async def test_pins_are_asked_for_again_when_the_runtime_did_not_answer(bench: Bench) -> None:
    bench.node.other_pins = [Pin("docker.io/library/old:1", OTHER)]
    bench.node.down = True
    await bench.spec()
    assert (bench.reconciler.stray_pins, bench.wait) == ([], 2)
    bench.node.down = False
    await bench.steps(seconds=2)
    assert len(bench.reconciler.stray_pins) == 1


async def test_an_unpin_that_fails_is_repeated(bench: Bench) -> None:
    bench.node.down = True
    assert await bench.spec(image("a", state=Desired.ABSENT)) == []
    assert bench.states() == ["a Waiting"]
    bench.node.down = False
    assert await bench.steps(10) == ["unpin a", "abandon a"]


async def test_paused_stops_the_pull_and_keeps_its_lease(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.spec(image("a", state=Desired.PAUSED)) == ["cancelled a"]
    assert bench.states() == ["a Paused"]
    assert await bench.spec(image("a")) == ["pull a"]


async def test_a_new_digest_replaces_the_pull_of_the_old_one(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.spec(image("a", digest="sha256:" + "b" * 64)) == [
        "cancelled a",
        "abandon a",
        "pull a",
    ]


async def test_the_lease_of_a_failed_pull_goes_with_its_entry_but_not_with_the_object(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    bench.reconciler.freeze()
    assert await bench.steps() == []
    await bench.spec(image("b"))
    bench.node.fail("b")
    await bench.steps()
    assert await bench.spec() == ["abandon b"]
    assert await bench.steps() == []


async def test_a_lost_image_is_found_when_suspected_and_pulled_again(bench: Bench) -> None:
    bench.node.holds.add("a")
    await bench.spec(image("a"))
    bench.node.holds.clear()
    assert await bench.steps() == []
    bench.reconciler.suspect_all()
    assert await bench.steps() == ["pull a"]


async def test_without_the_runtime_nothing_is_started_and_it_is_asked_again(bench: Bench) -> None:
    bench.node.down = True
    assert await bench.spec(image("a")) == []
    assert bench.wait == 2
    assert "containerd does not answer" in bench.reconciler.problem
    bench.node.down = False
    assert await bench.steps() == ["pull a"]
    assert bench.reconciler.problem == ""


async def test_an_image_that_cannot_be_judged_stops_no_other(bench: Bench) -> None:
    bench.node.odd.add("odd")
    assert await bench.spec(image("odd"), image("a")) == ["pull a"]
    assert bench.states() == ["odd Failed", "a Pulling"]
    assert bench.reconciler.problem == ""
    bench.node.odd.clear()
    assert await bench.steps(800) == []
    assert await bench.steps(200) == ["pull odd"]


async def test_a_pull_that_is_stopped_before_its_first_step_frees_its_slot(bench: Bench) -> None:
    bench.reconciler.take_spec([image("a")])
    await bench.reconciler.step()
    bench.reconciler.take_spec([image("a", state=Desired.PAUSED)])
    await bench.reconciler.step()
    await bench.steps()
    assert not bench.reconciler.running
    assert bench.states() == ["a Paused"]


async def test_stopping_cancels_every_pull(bench: Bench) -> None:
    task = asyncio.create_task(bench.reconciler.run())
    bench.reconciler.take_spec([image("a"), image("b")])
    await settle()
    assert len(bench.node.pulls) == 2
    task.cancel()
    await asyncio.wait([task])
    assert bench.node.pulls == {}
    assert (
        bench.metrics.registry.get_sample_value(
            "imageprepull_pulls_total", {"result": "cancelled", "reason": ""}
        )
        == 2
    )


@pytest.mark.parametrize("when", ["in backoff", "running"])
async def test_what_a_deleted_object_left_half_done_is_dropped_when_a_new_one_does_not_want_it(
    bench: Bench, when: str
) -> None:
    await bench.spec(image("a"))
    if when == "in backoff":
        bench.node.fail("a")
        await bench.steps()
    bench.reconciler.freeze()
    assert await bench.steps() == [], "absence is never an order"
    if when == "running":
        bench.node.fail("a")
        assert await bench.steps() == []
    assert sorted(await bench.spec(image("b", digest=OTHER))) == ["abandon a", "pull b"]


async def test_what_a_deleted_object_left_half_done_is_resumed_when_a_new_one_wants_it(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    bench.reconciler.freeze()
    assert await bench.spec(image("a")) == ["pull a"]


async def test_what_failed_attempts_left_is_dropped_when_somebody_else_brought_the_image(
    bench: Bench,
) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    bench.node.holds.add("a")
    bench.reconciler.suspect_all()
    assert await bench.steps() == ["abandon a"]
    assert bench.states() == ["a Ready"]
    assert await bench.steps() == []


async def test_a_repair_compares_what_is_present_once_for_each_new_value(bench: Bench) -> None:
    bench.node.holds = {"a", "b"}
    assert await bench.spec(image("a", repair="1"), image("b", repair="1")) == ["verify a"]
    assert bench.states() == ["a Ready", "b Ready"], "what is compared is still there"
    bench.node.verifications["a"].set_result(Compared("2 layers are whole"))
    assert await bench.steps() == ["verify b"]
    bench.node.verifications["b"].set_exception(NodeError("BrokenChain", "a container uses it"))
    assert await bench.steps() == []
    views = list(bench.reconciler.views.values())
    assert [answer_of(view) for view in views] == [
        ("1", "", "2 layers are whole"),
        ("1", "BrokenChain", "BrokenChain: a container uses it"),
    ]
    assert await bench.spec(image("a", repair="2"), image("b")) == ["verify a"]


def answer_of(view: ImageView) -> tuple[str, str, str]:
    """What the status says of an order to repair."""
    shown = image_status(view)
    return shown.repaired, shown.repair_reason, shown.repair_result


async def test_an_image_that_was_compared_is_ready_in_the_meantime(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    bench.node.verifications["a"].set_result(Compared("2 layers are whole"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.reconciler.running == frozenset()
    assert bench.states() == ["a Ready"]


async def test_an_order_to_compare_outlasts_a_runtime_that_does_not_answer(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    away = NodeError("RuntimeUnavailable", "containerd does not answer", unavailable=True)
    bench.node.verifications["a"].set_exception(away)
    assert await bench.steps() == ["verify a"]
    (view,) = bench.reconciler.views.values()
    assert answer_of(view) == ("", "", "")


async def test_a_defect_in_a_comparison_is_told_as_such(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    bench.node.verifications["a"].set_exception(KeyError("x"))
    await bench.steps()
    (view,) = bench.reconciler.views.values()
    assert answer_of(view) == ("1", "InternalError", "InternalError: KeyError: 'x'")


async def test_what_a_full_disk_did_not_let_be_compared_is_tried_again_and_keeps_no_other_waiting(
    bench: Bench,
) -> None:
    """Nobody can tell how much room it needs."""
    bench.node.holds = {"a", "b"}
    await bench.spec(image("a", repair="1"), image("b", repair="1"))
    bench.node.verifications["a"].set_exception(NodeError("DiskFull", "no space left on device"))
    assert await bench.steps() == ["verify b"]
    bench.node.verifications["b"].set_result(Compared("2 layers are whole"))
    assert await bench.steps() == []
    view = next(iter(bench.reconciler.views.values()))
    assert answer_of(view) == ("", "DiskFull", "DiskFull: no space left on device")
    assert bench.wait == 900
    assert await bench.steps(seconds=899) == []
    assert await bench.steps(seconds=2) == ["verify a"]
    bench.node.verifications["a"].set_result(Compared("2 layers are whole"))
    await bench.steps()
    assert answer_of(view) == ("1", "", "2 layers are whole")


async def test_a_new_order_is_tried_at_once_whatever_the_last_one_waits_for(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    bench.node.verifications["a"].set_exception(NodeError("DiskFull", "no space left on device"))
    await bench.steps()
    (view,) = bench.reconciler.views.values()
    assert await bench.spec(image("a")) == []
    assert answer_of(view) == ("", "", "")
    assert await bench.spec(image("a", repair="2")) == ["verify a"]
    bench.reconciler.take_spec([image("a", repair="3")])
    bench.node.verifications["a"].set_exception(NodeError("DiskFull", "no space left on device"))
    assert await bench.steps() == ["verify a"]
    assert answer_of(view) == ("", "", "")


async def test_a_later_agent_compares_what_had_no_room_and_nothing_that_was_answered(bench: Bench) -> None:
    bench.node.holds = {"a", "b"}
    reported = [
        NodeImageStatus(
            reference="a", digest=DIGEST, state="Ready", repaired="1", repair_reason="BrokenChain"
        ),
        NodeImageStatus(reference="b", digest=DIGEST, state="Ready", repair_reason="InsufficientDisk"),
    ]
    bench.reconciler.take_spec([image("a", repair="1"), image("b", repair="1")], reported)
    assert await bench.steps() == ["verify b"]
    assert [answer_of(view)[1] for view in bench.reconciler.views.values()] == ["BrokenChain", ""]


async def test_what_a_comparison_removed_is_pulled_again(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    bench.node.holds = set()
    bench.node.verifications["a"].set_result(Compared("sha256:1 was broken", broken=True))
    assert await bench.steps() == ["pull a"]
    bench.node.succeed("a")
    assert await bench.steps() == []


async def test_what_went_with_a_broken_image_is_pulled_and_then_compared(bench: Bench) -> None:
    """Events tell of it, in their own time: until then it must not be answered that it is not there."""
    bench.node.holds = {"a", "b"}
    await bench.spec(image("a", repair="1"), image("b", repair="1"))
    bench.node.holds = set()
    bench.node.verifications["a"].set_result(Compared("sha256:1 was broken", broken=True))
    assert await bench.steps() == ["pull a", "pull b"]
    bench.node.succeed("a")
    bench.node.succeed("b")
    assert await bench.steps() == ["verify b"]


async def test_an_image_that_is_missing_is_pulled_and_then_compared(bench: Bench) -> None:
    assert await bench.spec(image("a", repair="1")) == ["pull a"]
    bench.node.succeed("a")
    assert await bench.steps() == ["verify a"]


async def test_a_comparison_ends_when_the_image_is_paused(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a", repair="1"))
    await bench.spec(image("a", repair="1", state=Desired.PAUSED))
    assert bench.node.verifications["a"].cancelled()
    assert bench.reconciler.running == frozenset()


async def test_an_image_that_is_taken_away_again_and_again_comes_back_ever_later(bench: Bench) -> None:
    bench.node.holds = {"a"}
    await bench.spec(image("a"))

    async def take() -> list[str]:
        bench.node.holds = set()
        bench.reconciler.suspect_all()
        return await bench.steps()

    assert await take() == ["pull a"]
    bench.node.succeed("a")
    await bench.steps()
    assert await take() == []
    (view,) = bench.reconciler.views.values()
    assert view.backoff is not None
    assert view.backoff.reason == "ImageLost"
    assert bench.states() == ["a Waiting"]
    assert await bench.steps(seconds=31) == ["pull a"]
    bench.node.succeed("a")
    await bench.steps()
    assert await take() == []
    assert await bench.steps(seconds=29) == []
    assert await bench.steps(seconds=32) == ["pull a"]


async def test_a_pull_that_succeeds_and_brings_nothing_is_not_repeated_at_once_for_ever(
    bench: Bench,
) -> None:
    await bench.spec(image("a"))

    async def succeed_in_vain() -> list[str]:
        bench.node.pulls["a"].set_result(Pulled(pinned=False))
        return await bench.steps()

    assert await succeed_in_vain() == ["pull a"], "the first time it may be chance"
    assert await succeed_in_vain() == []
    (view,) = bench.reconciler.views.values()
    shown = image_status(view)
    assert (shown.state, shown.reason) == ("Waiting", "ImageLost")
    assert "Missing now: its records" in shown.message
    assert await bench.steps(seconds=31) == ["pull a"]
    assert await succeed_in_vain() == []
    assert await bench.steps(seconds=29) == []
    assert await bench.steps(seconds=32) == ["pull a"]


async def test_what_a_comparison_removed_is_no_loss(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.succeed("a")
    await bench.steps()
    for nonce in ("1", "2", "3"):
        await bench.spec(image("a", repair=nonce))
        bench.node.holds = set()
        bench.node.verifications["a"].set_result(Compared("sha256:1 was broken", broken=True))
        assert await bench.steps() == ["pull a"]
        bench.node.succeed("a")
        await bench.steps()


async def test_a_pin_that_is_missing_is_set_at_once_and_the_image_stays_ready(bench: Bench) -> None:
    """An `Always` pull of the kubelet takes it from the tag's record, each time."""
    bench.node.holds = {"r.io/a:1", "r.io/b:1"}
    await bench.spec(image("r.io/a:1", pin=True), image("r.io/b:1", pin=True))
    for _ in range(5):
        bench.node.lack_pins.add("r.io/a:1")
        bench.reconciler.suspect_named({"r.io/a:1"})
        assert await bench.steps() == ["pin r.io/a:1"]
        assert bench.states() == ["r.io/a:1 Ready", "r.io/b:1 Ready"]
        # Its own update is an event too.
        bench.reconciler.suspect_named({"r.io/a:1"})
        assert await bench.steps() == []
        assert bench.node.calls == ["held r.io/a:1"], "and others are left alone"
    view = next(iter(bench.reconciler.views.values()))
    assert (view.losses.count, view.backoff) == (0, None)


@pytest.mark.parametrize("trouble", ["it does not stay", "it cannot be set"])
async def test_a_pin_that_does_not_stay_is_set_again_now_and_then_and_no_oftener(
    bench: Bench, trouble: str
) -> None:
    bench.node.holds = {"a"}
    bench.node.lack_pins = {"a"}
    bench.node.sticky = False
    assert (await bench.spec(image("a", pin=True))).count("pin a") == 1
    calls = []
    for _ in range(12):
        bench.node.down = trouble == "it cannot be set"
        bench.reconciler.wake()
        calls += await bench.steps(seconds=5)
        bench.node.down = False
        bench.reconciler.suspect_named({"a"})
        calls += await bench.steps(seconds=5)
    assert calls == ["pin a"] * 2
    assert bench.states() == ["a Ready"]


@pytest.mark.parametrize("state", [Desired.PRESENT, Desired.PAUSED])
async def test_a_pin_that_does_not_stay_is_set_again_without_being_reminded(
    bench: Bench, state: Desired
) -> None:
    bench.node.holds = {"a"}
    bench.node.lack_pins = {"a"}
    bench.node.sticky = False
    await bench.spec(image("a", pin=True, state=state))
    assert bench.wait == 60
    assert await bench.steps(seconds=60) == ["pin a"]
    bench.node.sticky = True
    assert await bench.steps(seconds=60) == ["pin a"]
    assert bench.wait is None


@pytest.mark.parametrize("state", [Desired.PRESENT, Desired.PAUSED])
async def test_a_pin_that_could_not_be_taken_away_is_tried_again_without_being_reminded(
    bench: Bench, state: Desired
) -> None:
    bench.node.holds, bench.node.our_pins, bench.node.stuck = {"a"}, {"a"}, {"a"}
    await bench.spec(image("a", state=state))
    assert bench.wait == 1.5
    bench.node.stuck = set()
    assert await bench.steps(1.5) == ["unpin a"]
    assert bench.wait is None


@pytest.mark.parametrize("state", [Desired.PRESENT, Desired.PAUSED, Desired.ABSENT])
async def test_who_does_not_ask_for_a_pin_gets_none(bench: Bench, state: Desired) -> None:
    bench.node.holds = {"a"}
    bench.node.lack_pins = {"a"}
    assert "pin a" not in await bench.spec(image("a", state=state))
    assert ("pin a" in await bench.spec(image("a", state=state, pin=True))) is (state is not Desired.ABSENT)


async def test_a_pin_that_yields_and_comes_back_makes_nothing_due(bench: Bench) -> None:
    """So it does at the end of disk pressure, for all images at once."""
    await bench.spec(image("a", pin=True))
    bench.node.fail("a", permanent=True)
    await bench.steps()
    assert await bench.spec(image("a", pin=False)) == []
    assert await bench.spec(image("a", pin=True)) == []
    assert bench.states() == ["a Failed"]


def test_an_entry_that_wants_its_pin_again_waits_for_no_earlier_one() -> None:
    view = ImageView(image("a"), pin_due=2000)
    view.taken_over(image("a", priority=1))
    assert view.pin_due == 2000
    view.taken_over(image("a", priority=1, pin=True))
    assert view.pin_due == 0
