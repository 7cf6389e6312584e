"""What the neighbour's benchmark makes of its samples."""

from __future__ import annotations

import pytest

from benchmarks.neighbour import Result, Waits, percentile, summaries


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (0, 1.0), (98.5, 99.0)]
)
def test_a_percentile_is_a_value_that_was_seen(percent: float, expected: float) -> None:
    assert percentile([float(number) for number in range(1, 101)], percent) == expected


def test_a_phase_has_what_overlaps_it() -> None:
    samples = [(0.0, 0.1), (1.0, 5.0), (6.5, 0.2), (7.5, 0.3), (10.0, 9.0)]
    found = Waits.of(samples, 5.0, 8.0)
    assert (found.count, found.longest, found.p50) == (3, 5.0, 0.3)
    assert Waits.of(samples, 100.0, 200.0) == Waits(0, 0.0, 0.0, 0.0)


def test_each_figure_has_its_own_median() -> None:
    def result(name: str, p99: float) -> Result:
        waits = Waits(9, p99 / 2, p99, p99 * 2)
        return Result(name, "eight", p99, p99, waits, waits, waits)

    found = summaries([result("b", 3.0), result("a", 9.0), result("b", 1.0), result("b", 2.0)])
    assert [(one.contender, one.runs, one.pull_p99) for one in found] == [("b", 3, 2.0), ("a", 1, 9.0)]
