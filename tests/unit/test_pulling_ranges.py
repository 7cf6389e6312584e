"""The spool's range map against a set of bytes, and the example cases that a reader should see."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.ranges import RangeMap

SIZE = 40
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: tuple(sorted(pair))))


@given(RANGES)
def test_it_holds_exactly_the_bytes_that_were_added(ranges: list[tuple[int, int]]) -> None:
    spool = RangeMap(SIZE)
    expected: set[int] = set()
    for start, end in ranges:
        spool.add(start, end)
        expected |= set(range(start, end))
    assert {byte for start, end in spool.ranges for byte in range(start, end)} == expected
    assert spool.held == len(expected)
    assert spool.complete == (len(expected) == SIZE)
    assert spool.frontier == next((byte for byte in range(SIZE) if byte not in expected), SIZE)
    # Sorted, disjoint, never touching.
    assert all(before[1] < after[0] for before, after in zip(spool.ranges, spool.ranges[1:], strict=False))


@given(RANGES, st.integers(0, SIZE))
def test_the_next_gap_is_missing_and_as_long_as_it_can_be(ranges: list[tuple[int, int]], offset: int) -> None:
    spool = RangeMap(SIZE, ranges)
    held = {byte for start, end in spool.ranges for byte in range(start, end)}
    gap = spool.gap_after(offset)
    if gap is None:
        assert set(range(offset, SIZE)) <= held
        return
    assert not held & set(range(*gap))
    assert set(range(offset, gap[0])) <= held
    assert gap[1] == SIZE or gap[1] in held


@given(RANGES, st.integers(0, SIZE), st.integers(0, SIZE))
def test_what_is_missing_of_a_part_is_what_is_not_held(
    ranges: list[tuple[int, int]], one: int, other: int
) -> None:
    spool = RangeMap(SIZE, ranges)
    held = {byte for start, end in spool.ranges for byte in range(start, end)}
    start, end = min(one, other), max(one, other)
    missing = list(spool.missing(start, end))
    assert {byte for span in missing for byte in range(*span)} == set(range(start, end)) - held
    assert all(before[1] < after[0] for before, after in itertools.pairwise(missing))


def test_an_empty_blob_is_complete_at_once() -> None:
    assert RangeMap(0).complete


def test_touching_ranges_become_one() -> None:
    assert repr(RangeMap(10, [(5, 10), (0, 5)])) == "<0-10 of 10>"


@pytest.mark.parametrize("wrong", [(-1, 3), (3, 2), (0, 11)])
def test_a_range_outside_the_blob_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not within"):
        RangeMap(10).add(*wrong)
