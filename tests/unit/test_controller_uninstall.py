"""What is left of an uninstall's time to the pod that asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from imageprepull.controller.uninstall import time_left

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("started", "left"),
    [
        ("2026-01-01T11:59:58Z", 98),
        ("2026-01-01T11:59:00Z", 40),
        ("2026-01-01T11:58:22Z", 5),
        ("2026-01-01T11:00:00Z", 5),
        ("2026-01-01T12:30:00Z", 100),
        ("", 100),
        ("yesterday", 100),
    ],
)
def test_the_time_counts_from_the_start_of_the_job_and_always_lets_orders_be_written(
    started: str, left: float
) -> None:
    job: dict[str, Any] = {"status": {"startTime": started} if started else {}}
    assert time_left(job, 100, NOW) == left


def test_a_time_that_is_shorter_than_the_shortest_stays_what_it_is() -> None:
    assert time_left({}, 2, NOW) == 2
    assert time_left({"status": {"startTime": "2026-01-01T11:00:00Z"}}, 2, NOW) == 2
