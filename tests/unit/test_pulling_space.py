"""Admission and the stop during a pull: pure rules over figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.space import (
    NO_THRESHOLDS,
    Open,
    Room,
    Thresholds,
    floor_of,
    human,
    shortage,
    to_stop,
)
from imageprepull.resources.free_space import Amount, parse_amount

GB = 10**9
KUBELET = Thresholds()


def room(free: float, capacity: float = 100) -> Room:
    return Room(round(capacity * GB), round(free * GB), 1000, 900)


@pytest.mark.parametrize(
    ("min_free", "thresholds", "expected"),
    [
        (None, KUBELET, 20),
        (None, Thresholds(image_gc_high=75), 30),
        ("30%", KUBELET, 30),
        ("40G", KUBELET, 40),
        # Not less than what pods are evicted for, whatever an object says.
        ("1%", KUBELET, 15),
        ("0", KUBELET, 15),
        (None, NO_THRESHOLDS, 0),
        ("25G,30%", KUBELET, 30),
        (None, Thresholds(eviction=Amount(count=50 * GB)), 50),
    ],
)
def test_what_must_stay_free(min_free: str | None, thresholds: Thresholds, expected: int) -> None:
    asked = None if min_free is None else parse_amount(min_free)
    assert floor_of(room(90), thresholds, asked) == expected * GB


def test_what_fits_to_the_byte_is_admitted_and_one_byte_more_is_not() -> None:
    assert shortage("/x", room(50), 20 * GB, 30 * GB) is None
    found = shortage("/x", room(50), 20 * GB, 30 * GB + 1)
    assert found is not None
    assert str(found) == "30 GB needed in /x, 50 GB free, and 20 GB of 100 GB must stay free"


def test_what_others_will_still_write_is_not_free() -> None:
    assert shortage("/x", room(50), 20 * GB, 10 * GB, promised=20 * GB) is None
    found = shortage("/x", room(50), 20 * GB, 11 * GB, promised=20 * GB)
    assert "of which other pulls will take 20 GB" in str(found)


def test_to_be_tried_again_takes_more_than_to_fit() -> None:
    assert shortage("/x", room(50), 20 * GB, 30 * GB, spare=GB) is not None
    assert shortage("/x", room(51), 20 * GB, 30 * GB, spare=GB) is None


def test_what_needs_nothing_fits_everywhere() -> None:
    assert shortage("/x", room(0), 20 * GB, 0, promised=GB, spare=GB) is None


def pull(left: float, floor: float = 20) -> Open:
    return Open(round(left * GB), round(left * GB), round(floor * GB))


def test_nothing_stops_while_there_is_room() -> None:
    assert to_stop(room(60), room(61), [pull(10), pull(20)], KUBELET) == {}


def test_the_newest_stops_first_when_not_all_will_fit() -> None:
    stopped = to_stop(room(60), None, [pull(30), pull(20), pull(5)], KUBELET)
    assert list(stopped) == [1]
    assert (stopped[1].promised, stopped[1].need) == (30 * GB, 20 * GB)


def test_estimates_may_waver_by_a_tenth() -> None:
    assert to_stop(room(60), None, [pull(42)], KUBELET) == {}
    assert list(to_stop(room(60), None, [pull(45)], KUBELET)) == [0]


def test_each_stops_at_its_own_floor() -> None:
    assert list(to_stop(room(24), None, [pull(0, 20), pull(0, 25)], KUBELET)) == [1]


def test_all_stop_when_the_next_look_could_find_the_threshold_passed() -> None:
    lenient = [pull(0, 15), pull(0, 15)]
    assert to_stop(room(17), room(18), lenient, KUBELET) == {}
    assert list(to_stop(room(17), room(20), lenient, KUBELET)) == [0, 1]
    # Room that grows is no danger.
    assert to_stop(room(17), room(10), lenient, KUBELET) == {}


def test_all_stop_at_the_threshold_of_inodes() -> None:
    few = Room(100 * GB, 90 * GB, 1000, 50)
    assert list(to_stop(few, None, [pull(1)], KUBELET)) == [0]
    assert to_stop(few, None, [pull(1)], NO_THRESHOLDS) == {}
    # btrfs tells of none.
    assert to_stop(Room(100 * GB, 90 * GB), None, [pull(1)], KUBELET) == {}


@given(
    free=st.floats(0, 100),
    before=st.floats(0, 100),
    pulls=st.lists(st.tuples(st.floats(0, 50), st.floats(15, 50)), max_size=5),
)
def test_those_who_go_on_never_mean_to_pass_a_threshold(
    free: float, before: float, pulls: list[tuple[float, float]]
) -> None:
    opened = [pull(*one) for one in pulls]
    stopped = to_stop(room(free), room(before), opened, KUBELET)
    on = [one for index, one in enumerate(opened) if index not in stopped]
    wavering = max((one.need for one in on), default=0) // 10
    left = room(free).free - sum(one.left for one in on)
    assert not on or left >= max(on[-1].floor - wavering, 0)
    assert all(room(free).free >= one.floor for one in on)
    # Who stops does not make others stop.
    again = to_stop(room(free), room(before), on, KUBELET)
    assert again == {}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (12_345_000_000, "12.3 GB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human(count) == text
