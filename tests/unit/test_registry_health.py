"""What is remembered of hosts, by a clock that a test sets."""

from __future__ import annotations

import pytest

from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.health import FAULTY, LACKS, RANGES, Breakers, FaultMemory, RangeMemory, Ranges
from imageprepull.registry.redirects import Locations


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def error(reason: str = "RegistryError", **more: float) -> RegistryError:
    return RegistryError("x", reason=reason, kind=ErrorKind.TEMPORARY, **more)  # type: ignore[arg-type]


def test_a_mirror_is_passed_over_after_failures_in_a_row_only() -> None:
    breakers = Breakers(3, 60, Clock())
    for _ in range(5):
        breakers.unanswered("m")
        breakers.unanswered("m")
        assert breakers.allows("m")
        breakers.answered("m")
    for _ in range(3):
        breakers.unanswered("m")
    assert not breakers.allows("m")
    assert breakers.allows("another")


def test_after_the_pause_one_probe_goes_through_and_what_it_finds_counts() -> None:
    clock = Clock()
    breakers = Breakers(1, 60, clock)
    breakers.unanswered("m")
    clock.now += 60
    assert [breakers.allows("m") for _ in range(3)] == [True, False, False]
    breakers.unanswered("m")
    clock.now += 59
    assert not breakers.allows("m")
    clock.now += 1
    assert breakers.allows("m")
    breakers.answered("m")
    assert all(breakers.allows("m") for _ in range(3))


def test_a_probe_that_is_never_heard_of_again_costs_one_more_pause() -> None:
    clock = Clock()
    breakers = Breakers(1, 60, clock)
    breakers.unanswered("m")
    clock.now += 60
    assert breakers.allows("m")
    clock.now += 60
    assert breakers.allows("m")


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (error("NotFound"), LACKS),
        (error(), FAULTY),
        (error(retry_after=900), 900),
        (error(retry_after=1), FAULTY),
    ],
)
def test_a_host_is_asked_last_for_what_it_failed_at(found: RegistryError, seconds: float) -> None:
    clock = Clock()
    memory = FaultMemory(clock)
    memory.refused("h", "d", found)
    assert (memory.rank("h", "d"), memory.rank("h", "e"), memory.rank("i", "d")) == (1, 0, 0)
    clock.now += seconds
    assert memory.rank("h", "d") == 0


def test_no_answer_is_no_fault_of_a_blob() -> None:
    memory = FaultMemory(Clock())
    silent = error()
    silent.unanswered = True
    memory.refused("h", "d", silent)
    assert memory.rank("h", "d") == 0


def test_streams_without_a_byte_count_and_those_with_some_do_not() -> None:
    memory = FaultMemory(Clock())
    memory.stream_ended("h", "d", error(), gained=False)
    assert memory.rank("h", "d") == 0
    memory.stream_ended("h", "d", error(), gained=True)
    memory.stream_ended("h", "d", error(), gained=False)
    assert memory.rank("h", "d") == 0, "bytes between the two"
    memory.stream_ended("h", "d", error(), gained=False)
    assert memory.rank("h", "d") == 1
    memory.stream_ended("h", "d", None, gained=True)
    assert memory.rank("h", "d") == 0


def test_who_served_wrong_bytes_comes_after_who_served_none() -> None:
    memory = FaultMemory(Clock())
    memory.refused("none", "d", error())
    memory.distrusted["wrong", "d"] = None
    assert sorted(["wrong", "none", "good"], key=lambda host: memory.rank(host, "d")) == [
        "good",
        "none",
        "wrong",
    ]


def test_a_hosts_way_with_ranges_is_forgotten() -> None:
    clock = Clock()
    ranges = RangeMemory(clock)
    assert ranges.known("h") is None
    for did in Ranges:
        ranges.learn("registry", "h", did)
        assert ranges.known("h") is did
    assert ranges.without("registry")
    clock.now += RANGES
    assert ranges.known("h") is None
    assert not ranges.without("registry")


def test_a_registry_gives_whole_blobs_while_the_host_that_answers_for_it_does() -> None:
    ranges = RangeMemory(Clock())
    assert not ranges.without("registry")
    ranges.learn("registry", "mirror", Ranges.IGNORED)
    assert ranges.without("registry")
    assert not ranges.without("other"), "its hosts are others"
    ranges.learn("registry", "upstream", Ranges.SERVED)
    assert not ranges.without("registry"), "the mirror is not asked any more"
    ranges.learn("registry", "mirror", Ranges.REFUSED)
    assert ranges.without("registry")
    ranges.learn("other", "mirror", Ranges.SERVED)
    assert not ranges.without("registry"), "the mirror has learnt it"


def test_places_are_bounded_and_what_is_used_stays() -> None:
    places = Locations()
    places.limit = 2
    first = places.place("h", "a")
    places.place("h", "b")
    assert places.place("h", "a") is first
    places.place("h", "c")
    assert places.keys() == {("h", "a"), ("h", "c")}
