"""Who gets the next connection: examples a reader should see, and what holds whatever the pool's state."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.assignment import FAIR_EVERY, BlobWork, Reach, Start, assign, next_span, share
from imageprepull.pulling.ranges import RangeMap

RANGE = 8


def blob(number: int, size: int = 100, **about: object) -> BlobWork:
    return replace(BlobWork(number=number, priority=number, size=size, served=0), **about)  # type: ignore[arg-type]


def begin(*blobs: BlobWork, width: int = 8, cap: int = 8, small: int = 0, starts: int = 0) -> list[Start]:
    return assign(blobs, width=width, cap=cap, range_size=RANGE, small=small, starts=starts)


def numbers(begun: list[Start]) -> list[int]:
    return [start.number for start in begun]


def test_a_blob_is_probed_with_one_range_before_it_is_spread() -> None:
    assert begin(blob(0)) == [Start(0, (0, 8))]
    assert begin(blob(0, busy=[(0, 8)], running=1)) == []


def test_a_blob_of_one_range_is_asked_for_as_a_whole() -> None:
    assert begin(blob(0, size=7)) == [Start(0, (0, 7))]


def test_a_host_without_ranges_gets_one_request_to_the_end() -> None:
    assert begin(blob(0, reach=Reach.STREAM)) == [Start(0, (0, 100))]
    assert begin(blob(0, reach=Reach.STREAM, held=[(0, 30), (50, 60)])) == [Start(0, (30, 100))]
    assert begin(blob(0, reach=Reach.STREAM, busy=[(0, 100)], running=1)) == []


def test_a_large_layer_that_is_alone_takes_all_connections_lowest_bytes_first() -> None:
    begun = begin(blob(0, reach=Reach.RANGES, held=[(0, 8), (16, 20)]), width=4)
    assert [start.span for start in begun] == [(8, 16), (20, 24), (24, 32), (32, 40)]


def test_a_range_that_was_cut_is_asked_for_up_to_where_it_ended() -> None:
    assert begin(blob(0, reach=Reach.RANGES, held=[(0, 11)]), width=1) == [Start(0, (11, 16))]


def test_the_lowest_layer_comes_first_and_leaves_something_to_the_next() -> None:
    begun = begin(blob(1, reach=Reach.RANGES), blob(0, reach=Reach.RANGES, priority=0))
    assert numbers(begun).count(0) == share(8) == 6
    assert numbers(begun).count(1) == 2
    assert numbers(begun)[:6] == [0] * 6


def test_small_blobs_use_the_cap_and_large_ones_the_width() -> None:
    large = [blob(number) for number in range(4)]
    tiny = [blob(number, size=5) for number in range(4, 20)]
    assert numbers(begin(*large, *tiny, width=2, cap=6, small=5)) == [0, 1, 4, 5, 6, 7]


def test_what_rests_or_waits_is_not_asked_for() -> None:
    assert begin(blob(0, reach=Reach.RANGES, resting=True)) == []
    assert begin(blob(0, busy=[(0, 8)])) == [], "the probe failed and waits"
    assert begin(blob(0, reach=Reach.RANGES, busy=[(0, 8)]), width=1) == [Start(0, (8, 16))], (
        "one range waits"
    )


def test_a_blob_that_always_comes_second_is_served_in_the_end() -> None:
    late = blob(0, priority=9, reach=Reach.RANGES)
    for starts in range(FAIR_EVERY):
        urgent = blob(starts + 1, priority=0, reach=Reach.RANGES, served=starts)
        if 0 in numbers(begin(late, urgent, width=1, starts=starts)):
            return
    pytest.fail("it starves")


@st.composite
def states(draw: st.DrawFn) -> list[BlobWork]:
    blobs = []
    for number in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, 90))
        marks = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
        spans = [span for span in itertools.pairwise(marks) if span[0] < span[1]]
        kinds = [draw(st.sampled_from(["held", "running", "waiting"])) for _ in spans]
        reach = draw(st.sampled_from(Reach))
        if reach is not Reach.RANGES:
            kinds = [
                "running" if kind == "running" and "running" not in kinds[:at] else "held"
                for at, kind in enumerate(kinds)
            ]
        blobs.append(
            BlobWork(
                number=number,
                priority=draw(st.integers(0, 3)),
                size=size,
                held=[span for span, kind in zip(spans, kinds, strict=True) if kind == "held"],
                busy=[span for span, kind in zip(spans, kinds, strict=True) if kind != "held"],
                running=kinds.count("running"),
                reach=reach,
                served=draw(st.integers(0, 50)),
                resting=draw(st.booleans()) and draw(st.booleans()),
            )
        )
    return blobs


@given(states(), st.integers(1, 10), st.integers(1, 10), st.integers(0, 20), st.integers(0, 100))
def test_whatever_the_state(blobs: list[BlobWork], width: int, cap: int, small: int, starts: int) -> None:
    begun = begin(*blobs, width=width, cap=cap, small=small, starts=starts)
    by_number = {one.number: one for one in blobs}
    running = sum(one.running for one in blobs)
    assert len(begun) <= max(0, cap - running), "never more than are allowed"
    for number, one in by_number.items():
        mine = [start.span for start in begun if start.number == number]
        held = RangeMap(one.size, one.held)
        taken = RangeMap(one.size, one.busy)
        for start, end in mine:
            assert 0 <= start < end <= one.size
            assert start == next(held.missing(start, end))[0], "begins with a missing byte"
            assert list(taken.missing(start, end)) == [(start, end)], "never two connections on one range"
            if one.reach is Reach.RANGES:
                assert list(held.missing(start, end)) == [(start, end)], "never a byte twice"
                assert end - start <= RANGE
            taken.add(start, end)
        if one.reach is not Reach.RANGES:
            assert len(mine) + bool(one.busy) <= 1
        assert not (mine and one.resting)
    # It stops for a reason: no room, or nobody left who wants a connection.
    if running + len(begun) < min(width, cap):
        after = [
            replace(
                one,
                busy=(*one.busy, *(start.span for start in begun if start.number == one.number)),
            )
            for one in blobs
        ]
        assert not any(next_span(one, RANGE) for one in after)


@given(states(), st.integers(1, 10), st.integers(0, 100))
def test_the_first_start_is_the_most_urgent_that_has_not_its_share(
    blobs: list[BlobWork], width: int, starts: int
) -> None:
    begun = begin(*blobs, width=width, starts=starts)
    if not begun or (starts + 1) % FAIR_EVERY == 0:
        return
    wanting = [one for one in blobs if next_span(one, RANGE)]
    below = [one for one in wanting if one.running < share(width)]
    best = min(below or wanting, key=lambda one: (one.priority, one.number))
    assert begun[0].number == (best if len(wanting) > 1 else wanting[0]).number
