"""The agent and its disks: pressure with hysteresis, pins that yield, images that wait for room.

FAKE looks at the disks, beside the fake node: nobody can fill a real one to a given byte. tests/containerd fills some.
"""

from __future__ import annotations

from asyncio import TaskGroup
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.backoff import Backoff, Failure, Pace
from imageprepull.agent.disk import DiskGuard, waiting
from imageprepull.agent.disk_pressure import Margins, Short, judge_pressure
from imageprepull.agent.node import Compared, NodeError
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.status import Report, build_status, image_status, same_news, verdict_of
from imageprepull.pulling.need import Need
from imageprepull.pulling.pins import Pin
from imageprepull.pulling.rooms import FileSystem, Places, Rooms
from imageprepull.pulling.space import NO_THRESHOLDS, NoRoom, Room, Thresholds
from imageprepull.resources.nodeprepull import Agent, Desired, DesiredImage, NodePrepullStatus, OnRemoval
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import FakeNode, StillClock, image
from tests.unit.test_agent_reconciler import settle

GB = 10**9
OTHER, THIRD = (f"sha256:{letter * 64}" for letter in "bc")
KUBELET = Thresholds()
MARGINS = Margins()
CALM = Short()
X_SHORT = Short(frozenset({("/x", "bytes")}))


def room(free: float, inodes_free: int = 900) -> Room:
    return Room(100 * GB, round(free * GB), 1000, inodes_free)


@pytest.mark.parametrize(
    ("was", "free", "expected"),
    [(False, 16.1, False), (False, 16, True), (True, 20, True), (True, 20.1, False), (False, 0, True)],
)
def test_pressure_begins_before_the_threshold_and_ends_well_above_it(
    was: bool, free: float, expected: bool
) -> None:
    before = X_SHORT if was else CALM
    assert judge_pressure(before, {"/x": room(free)}, KUBELET, MARGINS).pressure is expected


def test_any_file_system_of_the_runtime_counts_and_the_message_names_it() -> None:
    short = judge_pressure(CALM, {"/a": room(90), "/b": room(10)}, KUBELET, MARGINS)
    assert short.message == "10 GB of 100 GB free in /b; the kubelet evicts pods below 15 GB"


def test_inodes_count_too_and_a_threshold_of_nothing_does_not() -> None:
    assert judge_pressure(CALM, {"/x": room(90, 60)}, KUBELET, MARGINS).pressure
    assert not judge_pressure(CALM, {"/x": room(90, 61)}, KUBELET, MARGINS).pressure
    assert not judge_pressure(X_SHORT, {"/x": room(0, 0)}, NO_THRESHOLDS, MARGINS).pressure


def scarce(*looks: dict[str, Room]) -> set[str]:
    """Where, after the last of them."""
    short = CALM
    for rooms in looks:
        short = judge_pressure(short, rooms, KUBELET, MARGINS)
    return {f"{what} of {folder}" for folder, what in short.scarce}


def test_who_is_always_close_does_not_hold_the_pressure_that_another_began() -> None:
    close, dip, over = room(18), room(10), room(90)
    assert scarce({"/a": close, "/b": over}) == set()
    assert scarce({"/a": close, "/b": dip}) == {"bytes of /b"}
    assert scarce({"/a": close, "/b": dip}, {"/a": close, "/b": room(19)}) == {"bytes of /b"}
    assert scarce({"/a": close, "/b": dip}, {"/a": close, "/b": over}) == set()
    assert scarce({"/a": dip, "/b": dip}, {"/a": close, "/b": over}) == {"bytes of /a"}


def test_bytes_and_inodes_of_one_file_system_do_not_hold_each_others_pressure() -> None:
    assert scarce({"/x": room(10, 80)}) == {"bytes of /x"}
    assert scarce({"/x": room(10, 80)}, {"/x": room(90, 80)}) == set()
    assert scarce({"/x": room(18, 50)}, {"/x": room(18, 90)}) == {"inodes of /x"}
    assert scarce({"/x": room(18, 50)}, {"/x": room(18, 90)}, {"/x": room(18, 900)}) == set()


@given(st.lists(st.floats(0, 100), max_size=30))
def test_it_never_swings_within_the_hysteresis(frees: list[float]) -> None:
    was = CALM
    for free in frees:
        following = judge_pressure(was, {"/x": room(free)}, KUBELET, MARGINS)
        assert following.pressure or free > 16
        assert not following.pressure or free <= 20.1
        assert following.pressure is was.pressure or free <= 16 or free > 20
        was = following


@pytest.mark.parametrize("free", [15, 15.5])
def test_pins_have_yielded_where_the_kubelet_would_evict(free: float) -> None:
    assert judge_pressure(CALM, {"/x": room(free)}, KUBELET, MARGINS).pressure


def test_without_room_no_attempt_counts_and_no_time_is_guessed() -> None:
    failure = Failure("InsufficientDisk", "not begun")
    first = waiting(None, failure, Pace(), 0.5)
    assert (first.attempts, first.final, first.delay) == (0, False, 0)
    old = Backoff(3, False, "RegistryUnreachable", "x", 5)
    assert waiting(old, failure, Pace(), 0.5).attempts == 3


def test_a_disk_that_was_full_all_the_same_takes_time_as_well_but_is_never_final() -> None:
    backoff = None
    for _ in range(50):
        backoff = waiting(backoff, Failure("DiskFull", "x"), Pace(2, 300), 0.5)
    assert backoff is not None
    assert (backoff.final, backoff.delay) == (False, 225)


@dataclass
class Bench:
    """A reconciler on a fake node whose disk has `free` GB."""

    node: FakeNode
    reconciler: Reconciler
    guard: DiskGuard
    disk: Room
    clock: StillClock
    other: Room = field(default_factory=lambda: room(90))
    """Of another file system of the runtime."""
    desired: tuple[DesiredImage, ...] = ()

    async def spec(self, *desired: DesiredImage) -> list[str]:
        self.desired = desired
        self.reconciler.take_spec(self.guard.effective(desired))
        return await self.steps()

    async def free(self, gigabytes: float) -> list[str]:
        self.disk = room(gigabytes)
        await self.guard.look(
            lambda: self.reconciler.take_spec(self.guard.effective(self.desired)), self.reconciler.wake
        )
        return await self.steps()

    async def steps(self) -> list[str]:
        self.node.calls.clear()
        for _ in range(5):
            await settle()
            await self.reconciler.step()
        return [call for call in self.node.calls if not call.startswith("held")]

    def shown(self, reference: str) -> tuple[str, str, int]:
        for view in self.reconciler.views.values():
            if view.desired.reference == reference:
                status = image_status(view)
                return status.state, status.reason, status.attempts
        raise AssertionError(reference)

    def reported(self) -> tuple[bool, str]:
        """Whether pins have yielded, and the message; as loops.py reports it."""
        disk = self.guard.report(self.reconciler.pins_left, self.reconciler.unfinished_left)
        assert disk is not None
        return disk.pins_yielded, disk.message

    def refuse(self, reference: str, need: int, reason: str = "InsufficientDisk") -> None:
        lack = NoRoom(reason, "not begun: figures", Need(snapshots=need * GB), None)
        self.node.fail(reference, reason, no_room=lack)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    node, clock = FakeNode(), StillClock()
    rooms = Rooms(
        Places(Path("/x"), Path("/x")),
        KUBELET,
        60,
        lambda _: {
            1: FileSystem("/x", made.disk, {"snapshots", "spool"}),
            2: FileSystem("/y", made.other, {"content"}),
        },
    )
    guard = DiskGuard(rooms, MARGINS, 60)
    async with TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=clock,
            metrics=AgentMetrics(),
            on_change=lambda: None,
            gate=guard.gate,
        )
        made = Bench(node, reconciler, guard, room(50), clock)
        await made.free(50)
        yield made
        await reconciler.stop_pulls()


async def test_an_image_without_room_waits_and_starts_when_there_is_more_than_enough(bench: Bench) -> None:
    assert await bench.spec(image("a")) == ["pull a"]
    bench.refuse("a", 40)
    assert await bench.steps() == []
    assert bench.shown("a") == ("Waiting", "InsufficientDisk", 0)
    assert await bench.free(60) == [], "to the byte is too little to begin again"
    assert await bench.free(60.9) == []
    assert await bench.free(61) == ["pull a"]
    assert bench.shown("a")[0] == "Pulling"


async def test_each_look_wakes_the_reconciler_while_somebody_waits(bench: Bench) -> None:
    woken: list[str] = []

    async def look() -> list[str]:
        woken.clear()
        await bench.guard.look(lambda: woken.append("changed"), lambda: woken.append("woken"))
        return woken

    assert await look() == []
    await bench.spec(image("a"))
    bench.refuse("a", 40)
    await bench.steps()
    assert await look() == ["woken"]
    bench.disk = room(10)
    assert await look() == ["changed"]
    assert await look() == ["woken"], "something may be left to be given back"


async def test_nobody_is_woken_any_more_when_nobody_waits(bench: Bench) -> None:
    woken: list[str] = []
    await bench.spec(image("a"))
    await bench.free(10)
    await bench.free(90)
    bench.node.fail(
        "a", "InsufficientDisk", no_room=NoRoom("InsufficientDisk", "x", Need(snapshots=GB), None)
    )
    await bench.steps()
    bench.node.succeed("a")
    await bench.steps()
    for _ in range(5):
        woken.clear()
        await bench.guard.look(lambda: woken.append("changed"), lambda: woken.append("woken"))
        await bench.steps()
    assert woken == []


async def test_others_that_fit_are_pulled_meanwhile(bench: Bench) -> None:
    await bench.spec(image("large"))
    bench.refuse("large", 40)
    assert await bench.spec(image("large"), image("small")) == ["pull small"]


async def test_what_another_pull_has_brought_may_make_it_fit(bench: Bench) -> None:
    await bench.spec(image("large"), image("other"))
    bench.refuse("large", 40)
    assert await bench.steps() == []
    bench.node.succeed("other")
    assert "pull large" in await bench.steps()
    bench.refuse("large", 40)
    assert await bench.steps() == [], "refused anew: nothing came that could change it"


async def test_a_changed_wish_is_tried_at_once(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.refuse("a", 40)
    await bench.steps()
    assert await bench.spec(image("a", nonce="again")) == ["pull a"]


async def test_under_pressure_nothing_starts_and_nothing_is_repaired(bench: Bench) -> None:
    bench.node.holds.add("a")
    await bench.spec(image("a"), image("b", state=Desired.PAUSED))
    assert await bench.free(16) == []
    bench.node.holds.clear()
    bench.reconciler.suspect_all()
    assert await bench.steps() == []
    assert bench.shown("a") == ("Waiting", "NodeDiskPressure", 0)
    assert bench.shown("b")[:2] == ("Paused", "NodeDiskPressure")
    assert await bench.free(19) == [], "not before it is well above"
    assert await bench.free(21) == ["pull a"]
    assert bench.shown("a")[1] == ""


async def test_what_has_no_room_to_be_compared_waits_for_it_and_the_order_with_it(bench: Bench) -> None:
    bench.node.holds |= {"a", "b"}
    assert await bench.spec(image("a", repair="1"), image("b", repair="1")) == ["verify a"]
    lack = NoRoom("InsufficientDisk", "not enough room: figures", Need(spool=GB, snapshots=39 * GB), None)
    bench.node.verifications["a"].set_exception(NodeError(lack.reason, str(lack), no_room=lack))
    assert await bench.steps() == ["verify b"], "it keeps no other waiting"
    bench.node.verifications["b"].set_result(Compared("2 layers are whole"))
    assert await bench.steps() == []
    status = image_status(next(iter(bench.reconciler.views.values())))
    assert (status.state, status.repaired, status.repair_reason) == ("Ready", "", "InsufficientDisk")
    assert status.repair_result == "InsufficientDisk: not enough room: figures"
    assert await bench.free(90) == [], "each comparison reads all of the image"
    bench.clock.seconds += 61
    assert await bench.free(60.9) == []
    assert await bench.free(61) == ["verify a"]
    bench.node.verifications["a"].set_result(Compared("2 layers are whole"))
    assert await bench.steps() == []
    assert image_status(next(iter(bench.reconciler.views.values()))).repaired == "1"


async def test_pressure_passes_from_one_file_system_to_another_and_ends_with_the_last(bench: Bench) -> None:
    await bench.spec(image("a", state=Desired.PAUSED))
    await bench.free(10)
    await bench.free(9)
    assert "10 GB of 100 GB free in /x" in bench.guard.short.message, "no news at each look"
    bench.other = room(16)
    await bench.free(10)
    bench.other = room(18)
    await bench.free(18)
    assert "in /x" in bench.guard.short.message
    await bench.free(50)
    assert bench.guard.short.message == "18 GB of 100 GB free in /y; the kubelet evicts pods below 15 GB"
    bench.other = room(21)
    await bench.free(18)
    assert bench.reported() == (False, "")


async def test_pins_yield_once_and_come_back_with_the_room(bench: Bench) -> None:
    pinned = msgspec.structs.replace(image("a"), pin=True)
    bench.node.holds.add("a")
    bench.node.our_pins.add("a")
    await bench.spec(pinned)
    assert await bench.free(16) == ["unpin a"]
    assert await bench.free(12) == []
    assert await bench.free(18) == []
    view = next(iter(bench.reconciler.views.values()))
    assert not view.desired.pin
    for _ in range(2):
        assert await bench.free(25) == ["pin a"], "nothing is pulled for it"
        assert bench.shown("a") == ("Ready", "", 0), "it was nobody's loss"
        assert await bench.free(16) == ["unpin a"]


async def test_a_paused_entry_whose_pin_yielded_is_pinned_again_if_it_still_pins(bench: Bench) -> None:
    bench.node.holds |= {"a", "b"}
    bench.node.our_pins |= {"a", "b"}
    one, two = (msgspec.structs.replace(image(name), pin=True) for name in ("a", "b"))
    paused = [msgspec.structs.replace(entry, state=Desired.PAUSED) for entry in (one, two)]
    await bench.spec(*paused)
    assert await bench.free(16) == ["unpin a", "unpin b"]
    assert await bench.spec(paused[0], msgspec.structs.replace(paused[1], pin=False)) == []
    assert await bench.free(25) == ["pin a"]
    assert bench.shown("a")[0] == "Paused"


async def test_pins_have_yielded_when_none_is_left_and_not_before(bench: Bench) -> None:
    bench.node.holds |= {"a", "b"}
    bench.node.our_pins |= {"a", "b"}
    await bench.spec(*(msgspec.structs.replace(image(name), pin=True) for name in ("a", "b")))
    assert bench.reported() == (False, "")
    bench.node.down = True
    await bench.free(16)
    yielded, message = bench.reported()
    assert not yielded
    assert "; pins are being taken away, 2 may be left" in message
    bench.node.down = False
    bench.clock.seconds += 600
    await bench.steps()
    assert bench.node.our_pins == set()
    yielded, message = bench.reported()
    assert yielded
    assert "may be left" not in message
    await bench.free(25)
    assert bench.reported() == (False, "")


async def test_a_pull_that_began_before_the_pressure_may_set_its_pin_still(bench: Bench) -> None:
    await bench.spec(msgspec.structs.replace(image("a"), pin=True))
    await bench.free(16)
    assert bench.reported()[0] is False
    bench.node.our_pins.add("a")
    bench.node.succeed("a")
    await settle()
    assert bench.reported()[0] is False, "nobody has asked for the pins since"
    assert await bench.steps() == ["unpin a"]
    assert bench.reported()[0] is True


async def test_an_image_that_cannot_be_judged_does_not_hide_that_pins_have_yielded(bench: Bench) -> None:
    bench.node.holds.add("a")
    bench.node.our_pins.add("a")
    bench.node.odd.add("odd")
    await bench.spec(*(msgspec.structs.replace(image(name), pin=True) for name in ("a", "odd")))
    assert await bench.free(16) == ["unpin a"]
    assert bench.reported() == (True, bench.guard.short.message)


@pytest.mark.parametrize("when", ["now", "later"])
async def test_the_pin_of_an_image_that_cannot_be_judged_yields_too(bench: Bench, when: str) -> None:
    bench.node.odd.add("odd")
    bench.node.our_pins.add("odd")
    await bench.spec(msgspec.structs.replace(image("odd"), pin=True))
    if when == "later":
        bench.node.stuck.add("odd")
        assert await bench.free(16) == []
        assert bench.reported() == (
            False,
            f"{bench.guard.short.message}; pins are being taken away, 1 may be left",
        )
        bench.node.stuck.clear()
        assert await bench.steps() == [], "not again and again"
        bench.clock.seconds += 1000
        assert await bench.steps() == ["unpin odd"]
    else:
        assert await bench.free(16) == ["unpin odd"]
    assert bench.reported()[0] is True
    assert await bench.free(15) == []


async def test_a_pin_that_no_judgement_of_its_image_shows_yields_too(bench: Bench) -> None:
    """The ID's, of an image whose config cannot be read any more."""
    bench.node.other_pins = [Pin(f"sha256:{'c' * 64}", image("a").digest)]
    await bench.spec(msgspec.structs.replace(image("a"), pin=True, state=Desired.PAUSED))
    assert await bench.free(16) == ["unpin a"]
    assert bench.reported()[0] is True


@pytest.mark.parametrize("told", [True, False])
async def test_a_pin_that_a_pull_of_the_kubelet_took_is_not_taken_for_one_that_is_left(
    bench: Bench, told: bool
) -> None:
    bench.node.holds.add("a")
    bench.node.our_pins.add("a")
    await bench.spec(msgspec.structs.replace(image("a"), pin=True))
    if told:
        await bench.free(16)
        bench.node.our_pins.add("a")
        bench.reconciler.suspect_all()
        bench.node.stuck.add("a")
        await bench.steps()
        assert bench.reported()[0] is False
    bench.node.our_pins.clear()
    if told:
        bench.reconciler.suspect_named(["a"])
        await bench.steps()
    else:
        assert await bench.free(16) == []
    assert bench.reported()[0] is True


async def test_what_is_pulled_or_never_was_asked_for_counts_as_pinned_until_the_runtime_answers(
    bench: Bench,
) -> None:
    bench.node.down = True
    await bench.spec(image("a"), image("b"))
    await bench.free(16)
    assert "2 may be left" in bench.reported()[1]
    bench.node.down = False
    await bench.steps()
    assert bench.reported()[0] is True


@pytest.mark.parametrize("when", ["waits", "failed", "paused", "to be deleted", "of an earlier life", "gone"])
async def test_what_an_unfinished_pull_holds_is_given_back_once_under_pressure(
    bench: Bench, when: str
) -> None:
    after = image("a", limit=1 if when == "failed" else 9)
    if when == "of an earlier life":
        bench.node.unfinished[after.digest] = "a"
        after = msgspec.structs.replace(after, state=Desired.PAUSED)
        await bench.spec(after)
    else:
        await bench.spec(after)
    if when in ("waits", "failed", "gone"):
        bench.node.fail("a")
        assert await bench.steps() == []
    if when == "paused":
        after = msgspec.structs.replace(after, state=Desired.PAUSED)
        assert await bench.spec(after) == ["cancelled a"]
    if when == "to be deleted":
        bench.node.users = "web"
        after = msgspec.structs.replace(after, state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
        assert await bench.spec(after) == ["cancelled a", "unpin a"]
    if when == "gone":
        bench.reconciler.freeze()
        bench.desired = ()
        bench.disk = room(10)
        await bench.guard.look(lambda: None, bench.reconciler.wake)
        assert await bench.steps() == ["give back a"]
        return
    assert await bench.free(17) == [], "not before"
    assert await bench.free(16) == ["give back a"]
    assert bench.reported() == (True, bench.guard.short.message)
    assert await bench.free(15) == []
    if after.state is Desired.PRESENT:
        bench.clock.seconds += 1000
        assert await bench.steps() == []
        if when != "failed":
            assert bench.shown("a")[1] == "NodeDiskPressure"
        assert await bench.free(21) == ["pull a"]


async def test_nothing_is_said_to_be_given_back_before_the_runtime_has_collected_it(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    giving = f"{room(16).free // GB} GB of 100 GB free in /x; the kubelet evicts pods below 15 GB; "
    giving += "unfinished pulls are giving back what they hold"
    bench.node.collected.clear()
    await bench.free(16)
    assert bench.reported()[1] == giving
    bench.node.down = True
    bench.node.collected.set()
    await bench.steps()
    assert bench.reported()[1] == giving, "it could not be done"
    bench.node.down = False
    await bench.free(16)
    assert bench.node.unfinished == {}, "each look tries again"
    assert bench.reported()[1] == bench.guard.short.message
    bench.clock.seconds += 1000
    assert await bench.free(50) == ["pull a"]
    bench.node.fail("a")
    await bench.steps()
    bench.node.collected.clear()
    await bench.free(16)
    assert bench.reported()[1] == giving, "what was given back before says nothing"
    bench.node.collected.set()


async def test_a_pull_at_work_gives_nothing_back_before_it_has_ended(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.free(16) == []
    assert bench.reported()[1].endswith("; pulls still at work: 1")
    bench.node.fail("a")
    assert await bench.steps() == ["give back a"]
    assert bench.reported()[1] == bench.guard.short.message
    await bench.free(50)
    assert bench.reported() == (False, "")


async def test_what_was_left_of_one_pressure_says_nothing_of_the_next(bench: Bench) -> None:
    await bench.spec(image("a", limit=1), image("b", digest=OTHER))
    bench.node.fail("a")
    bench.node.fail("b")
    await bench.steps()
    bench.node.collected.clear()
    await bench.free(16)
    bench.clock.seconds += 10
    assert await bench.free(50) == ["pull b"]
    bench.node.fail("b")
    # The collection that the first pressure has ordered ends in the quiet, or in the next pressure.
    bench.node.collected.set()
    await settle()
    bench.node.collected.clear()
    await bench.free(16)
    assert bench.reported()[1].endswith("; unfinished pulls are giving back what they hold")
    bench.node.collected.set()
    await bench.steps()
    assert bench.reported()[1] == bench.guard.short.message


async def test_what_one_pressure_has_ordered_is_no_answer_to_the_next_that_began_meanwhile(
    bench: Bench,
) -> None:
    await bench.spec(image("a", limit=1))
    bench.node.fail("a")
    await bench.steps()
    bench.node.collected.clear()
    await bench.free(16)
    await bench.free(50)
    bench.disk = room(16)
    await bench.guard.look(lambda: None, lambda: None)
    await bench.reconciler.step()
    bench.node.collected.set()
    await settle()
    assert bench.reconciler.unfinished_left is None
    await bench.steps()
    assert bench.reconciler.unfinished_left == 0


async def test_one_collection_at_a_time_is_ordered(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.node.fail("a")
    await bench.steps()
    bench.node.collected.clear()
    for _ in range(3):
        await bench.free(16)
    assert bench.node.giving_back == 1
    bench.node.collected.set()
    await settle()
    assert bench.node.giving_back == 0
    assert bench.node.unfinished == {}


async def test_a_defect_in_giving_back_takes_no_pull_down_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> int:
        raise ZeroDivisionError("oops")

    await bench.spec(image("a"), image("b", digest=OTHER))
    bench.node.fail("a")
    with monkeypatch.context() as patch:
        patch.setattr(bench.node, "give_back", broken)
        assert await bench.free(16) == []
        await settle()
    assert bench.shown("b")[0] == "Pulling"
    assert bench.reported()[1].endswith("; unfinished pulls are giving back what they hold")
    assert await bench.free(16) == ["give back a"]
    assert bench.reported()[1].endswith("; pulls still at work: 1")


async def test_layers_of_pulls_at_work_and_of_images_that_are_there_are_shown_on_and_gain_as_before(
    bench: Bench,
) -> None:
    await bench.spec(image("there"), image("at work", digest=OTHER, parallel=3))
    there, at_work = bench.reconciler.views.values()
    for view in (there, at_work):
        assert view.progress is not None
        view.progress.layers[0].done = 50
    at_work.best_done = 40
    bench.node.succeed("there")
    await bench.steps()
    await bench.free(16)
    assert bench.reported()[1].endswith("; pulls still at work: 1")
    assert image_status(at_work).layers[0].done == 50
    assert there.progress is not None
    assert at_work.best_done == 40


async def test_layers_that_were_given_back_are_not_shown_and_count_as_gained_anew(bench: Bench) -> None:
    await bench.spec(image("a", limit=9))
    (view,) = bench.reconciler.views.values()
    for attempt in (1, 2):
        assert view.progress is not None
        view.progress.layers[0].done = 50
        bench.node.fail("a")
        await bench.steps()
        assert bench.shown("a")[2] == attempt
        assert image_status(view).layers[0].done == 50
        bench.clock.seconds += 10
        await bench.steps()
    bench.node.fail("a")
    await bench.free(16)
    assert image_status(view).layers == []
    bench.clock.seconds += 100
    assert "pull a" in await bench.free(50)
    assert view.progress is not None
    view.progress.layers[0].done = 30
    bench.node.fail("a")
    await bench.steps()
    assert bench.shown("a")[2] == 1


async def test_what_a_failed_image_keeps_gives_way_to_one_that_has_no_room(bench: Bench) -> None:
    failed, other, large = image("a", limit=1), image("b", digest=OTHER), image("c", digest=THIRD)
    await bench.spec(failed, other)
    bench.node.fail("a")
    bench.node.fail("b")
    assert await bench.steps() == []
    assert await bench.spec(failed, other, large) == ["pull c"]
    bench.refuse("c", 40)
    assert await bench.steps() == ["give back a"], "the other one is on its way"
    assert bench.shown("c")[1] == "InsufficientDisk"


async def test_what_is_to_be_deleted_and_waits_is_unpinned_as_well(bench: Bench) -> None:
    gone = msgspec.structs.replace(image("a", on_removal=OnRemoval.DELETE), state=Desired.ABSENT)
    bench.node.holds.add("a")
    bench.node.our_pins.add("a")
    bench.node.users = "web"
    bench.node.down = True
    await bench.spec(gone)
    await bench.free(16)
    assert bench.reported()[0] is False
    bench.node.down = False
    bench.clock.seconds += 600
    assert await bench.steps() == ["unpin a"]
    assert bench.shown("a")[:2] == ("Waiting", "ImageInUse")
    assert bench.reported()[0] is True


async def test_a_pin_is_gone_though_the_deletion_of_its_image_takes_long(bench: Bench) -> None:
    bench.node.holds.add("a")
    bench.node.our_pins.add("a")
    bench.node.asked.clear()
    await bench.free(16)
    gone = image("a", on_removal=OnRemoval.DELETE, state=Desired.ABSENT)
    assert await bench.spec(gone) == ["unpin a"]
    assert bench.reported()[0] is True
    bench.node.asked.set()
    assert await bench.steps() == ["remove a"]


async def test_the_status_tells_of_pressure_at_once_and_of_free_bytes_with_the_heartbeat(
    bench: Bench,
) -> None:
    def status() -> NodePrepullStatus:
        return build_status(Report(1, Agent(), bench.guard.report(0, 0), []), "now")

    calm = status()
    await bench.free(40)
    assert same_news(calm, status())
    await bench.free(10)
    pressed = status()
    assert not same_news(calm, pressed)
    assert verdict_of(pressed) == "pressure"
    disk = pressed.disk
    assert disk is not None
    assert (disk.pressure, disk.pins_yielded, disk.available) == (True, True, 10 * GB)
    assert "10 GB of 100 GB free in /x" in disk.message


async def test_a_full_disk_without_a_cause_that_can_be_seen_waits_for_time_too(bench: Bench) -> None:
    await bench.spec(image("a"))
    bench.refuse("a", 1, "DiskFull")
    assert await bench.steps() == []
    assert bench.shown("a") == ("Waiting", "DiskFull", 1)


async def test_a_removal_goes_on_at_once_under_pressure_though_a_pull_of_its_repository_waits(
    bench: Bench,
) -> None:
    """It may be what makes the room; without pressure it would wait for the layers that the new version shares."""
    old = image("r.io/a:1", digest=OTHER)
    new = image("r.io/a:2")
    gone = msgspec.structs.replace(old, state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
    bench.node.holds.add("r.io/a:1")
    await bench.spec(old)
    assert await bench.free(10) == []
    assert "remove r.io/a:1" in await bench.spec(gone, new)
    assert bench.shown("r.io/a:2") == ("Waiting", "NodeDiskPressure", 0)
    view = bench.reconciler.views[new.reference, new.digest]
    assert view.backoff is None, "it was never begun: nothing but the gate says that it waits for room"


async def test_without_pressure_a_removal_waits_for_the_pull_of_its_repository(bench: Bench) -> None:
    old = image("r.io/a:1", digest=OTHER)
    gone = msgspec.structs.replace(old, state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
    bench.node.holds.add("r.io/a:1")
    await bench.spec(old)
    assert "remove r.io/a:1" not in await bench.spec(gone, image("r.io/a:2"))
    bench.node.succeed("r.io/a:2")
    assert "remove r.io/a:1" in await bench.steps()
