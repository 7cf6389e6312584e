"""Looks that events of the runtime cause: soon for what they name, and never more than a share of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.accounts import Delays
from imageprepull.agent.doubts import Doubts, LookPace, Turn
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held
from imageprepull.agent.observing import note_losses
from imageprepull.agent.plan import Key, key_of
from imageprepull.agent.reconciler import Reconciler
from imageprepull.resources.nodeprepull import DesiredImage
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import FakeNode, StillClock, image
from tests.unit.virtual_time import run_virtually

A, B = image("r.io/a:1", digest="sha256:" + "a" * 64), image("r.io/b:1", digest="sha256:" + "b" * 64)
SHARED, ONLY_A, ONLY_B, NOBODYS = ("sha256:" + digit * 64 for digit in "1234")
PARTS = {A.reference: frozenset({SHARED, ONLY_A}), B.reference: frozenset({SHARED, ONLY_B})}
PACE = LookPace(times=20, longest=30, longest_named=5)


def views() -> dict[Key, ImageView]:
    found = {key_of(one): ImageView(one) for one in (A, B)}
    for view in found.values():
        view.held = Held(True, parts=PARTS[view.desired.reference])
    return found


def doubted(*lost: str) -> tuple[set[str], bool]:
    doubts = Doubts(PACE)
    note_losses(doubts, views(), frozenset(lost))
    return {key[0] for key in doubts.named}, doubts.everything


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ({ONLY_A}, {A.reference}),
        ({SHARED}, {A.reference, B.reference}),
        ({A.reference}, {A.reference}),
        ({f"r.io/b@{B.digest}"}, {B.reference}),
        ({ONLY_B, A.reference}, {A.reference, B.reference}),
    ],
)
def test_what_an_image_stands_on_makes_that_image_doubtful_and_no_other(
    lost: set[str], named: set[str]
) -> None:
    assert doubted(*lost) == (named, False)


@pytest.mark.parametrize("lost", [set(), {NOBODYS}, {"r.io/other:1"}, {"sha256:" + "9" * 64}])
def test_what_is_nobodys_and_what_nobody_knows_makes_all_doubtful(lost: set[str]) -> None:
    assert doubted(*lost) == (set(), True)


def test_beside_what_is_nobodys_the_named_are_named() -> None:
    assert doubted(NOBODYS, ONLY_A) == ({A.reference}, True)


def test_another_tag_of_a_repository_may_be_ours_and_may_be_a_pin_beside_the_spec() -> None:
    assert doubted("r.io/a:0") == ({A.reference}, True)


def test_a_look_at_all_rests_as_long_as_it_took_many_times_and_no_longer_than_the_bound() -> None:
    for took, rest in ((0.1, 2), (1, 20), (1.7, 30), (600, 30)):
        doubts = Doubts(PACE, everything=True)
        assert doubts.take(100) == Turn(everything=True), "the first is at once"
        doubts.looked(100, 100 + took)
        doubts.everything = True
        assert doubts.due() == pytest.approx(100 + took + rest)
        assert doubts.take(100 + took + rest - 0.01) == Turn()
        assert doubts.everything, "not forgotten"
        assert doubts.take(100 + took + rest + 0.01) == Turn(everything=True)


def test_what_an_event_names_does_not_wait_for_the_rest_after_a_look_at_all() -> None:
    doubts = Doubts(PACE, everything=True)
    doubts.take(0)
    doubts.looked(0, 2)
    doubts.everything = True
    doubts.named = {key_of(A)}
    assert doubts.due() == 0
    assert doubts.take(3) == Turn(frozenset({key_of(A)}))
    doubts.looked(3, 3.01)
    doubts.named = {key_of(A)}
    assert doubts.due() == pytest.approx(3.21), "its own rest is as short as its look"


def test_a_look_at_all_is_one_at_the_named_as_well_and_leaves_them_without_a_rest() -> None:
    doubts = Doubts(PACE, {key_of(A)}, everything=True)
    assert doubts.take(0) == Turn(frozenset({key_of(A)}), everything=True)
    doubts.looked(0, 1)
    assert doubts.due() is None
    doubts.named = {key_of(A)}
    assert doubts.take(1) == Turn(frozenset({key_of(A)}))


@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.floats(0.001, 0.5)), min_size=1, max_size=200),
)
def test_looks_never_take_more_than_their_share(events: list[tuple[float, bool, float]]) -> None:
    """`events`: seconds since the one before, whether it names an image, and what a look after it takes."""
    doubts = Doubts(PACE)
    now = busy = longest = 0.0
    for gap, names, takes in events:
        now += gap
        if names:
            doubts.named.add(key_of(A))
        else:
            doubts.everything = True
        while (due := doubts.due()) is not None and due <= now:
            turn = doubts.take(now)
            cost = takes if turn.everything else takes / 20
            doubts.looked(now, now + cost)
            now, busy, longest = now + cost, busy + cost, max(longest, cost)
    assert busy <= 2 * (now / PACE.times + longest)


class CostlyNode(FakeNode):
    """Each question takes `cost` seconds."""

    def __init__(self, cost: float, clock: StillClock | None = None) -> None:
        super().__init__()
        self.busy = 0.0
        self.looked: list[tuple[float, str]] = []
        self._cost = cost
        self._clock = clock

    async def held(self, image: DesiredImage) -> Held:
        if self._clock is None:
            await asyncio.sleep(self._cost)
        else:
            self._clock.seconds += self._cost
        self.busy += self._cost
        found = await super().held(image)
        if self._clock is None:
            self.looked.append((asyncio.get_running_loop().time(), image.reference))
        return replace(found, parts=frozenset({part(image.reference), SHARED} if found.present else ()))


def part(reference: str) -> str:
    return f"a layer of {reference}"


class LoopClock(StillClock):
    def now(self) -> float:
        return asyncio.get_running_loop().time()


async def beset(node: CostlyNode, events: Iterable[tuple[float, str]], until: float, count: int) -> None:
    """An agent with `count` images that are all there, and its runtime's losses: when, and of what."""
    wanted = [image(f"r.io/{number}:1") for number in range(count)]
    node.holds = {one.reference for one in wanted}
    async with asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=LoopClock(),
            metrics=AgentMetrics(),
            on_change=lambda: None,
            delays=Delays(resync=10**6, looks=PACE),
        )
        running = tasks.create_task(reconciler.run())
        reconciler.take_spec(wanted)
        await asyncio.sleep(count * 1.0)
        node.busy = 0
        node.looked.clear()
        begin = asyncio.get_running_loop().time()
        for moment, lost in events:
            await asyncio.sleep(max(0, begin + moment - asyncio.get_running_loop().time()))
            node.holds.discard(lost.removeprefix("a layer of "))
            reconciler.suspect_lost({lost})
        await asyncio.sleep(max(0, begin + until - asyncio.get_running_loop().time()))
        running.cancel()
        node.looked = [(moment - begin, name) for moment, name in node.looked]


def test_deletions_of_others_each_second_cost_a_bounded_share_and_the_last_is_looked_after() -> None:
    node = CostlyNode(0.0065)
    events = [(float(second), f"sha256:{second:064x}") for second in range(600)]
    run_virtually(beset(node, events, until=700, count=256))
    took = 256 * 0.0065
    assert node.busy == pytest.approx(took * (1 + 600 // (took + 30) + 1), abs=took)
    assert node.busy < 700 * 0.06
    assert max(moment for moment, _ in node.looked) > 599, "whatever was deleted last, too"


def test_a_loss_among_them_is_looked_at_at_once_and_alone() -> None:
    node = CostlyNode(0.0065)
    events = [(float(second), f"sha256:{second:064x}") for second in range(60)]
    events += [(15.5, part("r.io/7:1")), (16.5, "r.io/8:1")]
    run_virtually(beset(node, sorted(events), until=60, count=256))
    mended = {call: node.calls.index(call) for call in ("pull r.io/7:1", "pull r.io/8:1")}
    assert len(mended) == 2
    between = [(moment, name) for moment, name in node.looked if 14 < moment < 18]
    assert [name for _, name in between] == ["r.io/7:1", "r.io/8:1"]
    assert [moment for moment, _ in between] == pytest.approx([15.5065, 16.5065])


def test_one_deletion_of_somebody_else_is_looked_after_at_once() -> None:
    node = CostlyNode(0.0065)
    run_virtually(beset(node, [(10.0, NOBODYS)], until=20, count=20))
    assert [name for _, name in node.looked] == [f"r.io/{number}:1" for number in range(20)]
    assert node.looked[0][0] == pytest.approx(10.0065)
