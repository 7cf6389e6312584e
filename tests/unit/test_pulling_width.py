"""The pool's width over time, against links and registries that are a formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.width import Width, WidthTerms

TERMS = WidthTerms(first=4, window=1, gain=1.08, again=15, settle=5)


class Link:
    """A clock, and bytes that come at the rate that a width gets out of it."""

    def __init__(self, rate: Callable[[int], float], cap: int = 16) -> None:
        self.rate = rate
        self.cap = cap
        self.now = 100.0
        self.received = 0.0
        self.width = Width(TERMS)

    def run(self, seconds: float, *, full: bool = True) -> list[int]:
        seen = []
        for _ in range(int(seconds * 10)):
            self.now += 0.1
            self.received += self.rate(self.width.within(self.cap)) / 10
            self.width.observe(self.now, int(self.received), full=full, cap=self.cap)
            seen.append(self.width.within(self.cap))
        return seen

    def push_back(self) -> int:
        self.width.pushed_back(self.now, running=self.width.within(self.cap))
        return self.width.within(self.cap)


def test_it_grows_to_the_cap_while_each_connection_adds() -> None:
    link = Link(lambda width: 1e6 * width)
    assert link.run(30)[-1] == 16


def test_it_stops_where_the_link_is_full() -> None:
    link = Link(lambda width: 1e6 * min(width, 5))
    seen = link.run(60)
    assert seen[-1] in (4, 6)
    assert max(seen) == 9, "one step beyond what helps, that shows that it does not"
    assert seen.count(9) < 100, "and back"


def test_it_does_not_grow_while_there_is_not_enough_to_fetch() -> None:
    link = Link(lambda width: 1e6 * width)
    assert set(link.run(30, full=False)) == {4}


def test_it_halves_once_for_faults_that_fall_together_and_climbs_by_single_steps() -> None:
    link = Link(lambda width: 1e6 * width, cap=8)
    link.run(30)
    assert [link.push_back() for _ in range(8)] == [4] * 8
    assert set(link.run(4.8)) == {4}, "it settles first"
    climbed = link.run(60)
    assert all(after - before in (0, 1) for before, after in itertools.pairwise(climbed))
    assert climbed[-1] == 8


def test_faults_that_go_on_take_it_down_to_one_and_no_further() -> None:
    link = Link(lambda width: 1e6)
    widths = []
    for _ in range(5):
        widths.append(link.push_back())
        link.run(5.5)
    assert widths[0] == 2
    assert min(widths) == 1


def test_the_cap_holds_when_it_is_lowered() -> None:
    link = Link(lambda width: 1e6 * width)
    link.run(30)
    assert link.width.within(3) == 3
    assert link.width.within(1) == 1


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 10**9), st.booleans(), st.booleans()), max_size=60),
)
def test_it_is_never_above_the_cap_nor_below_one(
    cap: int, steps: list[tuple[float, int, bool, bool]]
) -> None:
    width, now, received = Width(TERMS), 0.0, 0
    for passed, count, full, fault in steps:
        now, received = now + passed, received + count
        width.observe(now, received, full=full, cap=cap)
        if fault:
            before = width.within(cap)
            width.pushed_back(now, running=before)
            assert width.within(cap) <= before
        assert 1 <= width.within(cap) <= cap
