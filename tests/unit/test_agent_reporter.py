from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held
from imageprepull.agent.pace import Pace, pace_from
from imageprepull.agent.reporter import Reporter, Schedule
from imageprepull.agent.status import Report
from imageprepull.kube.errors import ApiError, ApiUnreachable
from imageprepull.resources.nodeprepull import Agent
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import StillClock, image


class Desk:
    """A reporter over one image, with a server that notes writes or refuses them."""

    def __init__(self, pace: Pace) -> None:
        self.clock = StillClock()
        self.view = ImageView(image("a"))
        self.generation: int | None = 1
        self.refusal: ApiError | None = None
        self.written: list[Any] = []
        self.metrics = AgentMetrics()
        self.reporter = Reporter(self.write, self.collect, pace=pace, clock=self.clock, metrics=self.metrics)

    async def write(self, patch: dict[str, object]) -> object:
        if self.refusal is not None:
            raise self.refusal
        self.written.append(patch["status"])
        return {}

    def collect(self) -> Report | None:
        return None if self.generation is None else Report(self.generation, Agent(), None, [self.view])

    async def after(self, seconds: float) -> int:
        """How many writes there are when so much time has passed and one step was made."""
        self.clock.seconds += seconds
        await self.reporter.step()
        return len(self.written)


async def test_progress_is_sampled_and_nothing_is_written_without_news() -> None:
    desk = Desk(Pace(report_interval=10, heartbeat=600))
    assert await desk.after(0) == 1
    assert await desk.after(20) == 1
    desk.view.running = True
    assert await desk.after(0) == 2
    desk.view.running = False
    assert await desk.after(5) == 2
    assert await desk.after(4.9) == 2
    assert await desk.after(0.2) == 3


async def test_the_nodes_change_to_ready_is_written_at_once() -> None:
    desk = Desk(Pace(report_interval=100))
    assert await desk.after(0) == 1
    desk.view.held = Held(True)
    assert await desk.after(0.1) == 2
    assert desk.written[-1]["summary"]["ready"] == 1


async def test_in_a_storm_it_waits_for_its_turn_and_later_news_do_not_put_it_off() -> None:
    desk = Desk(Pace(report_interval=50, storm=True))
    await desk.after(0)
    desk.view.held = Held(True)
    assert await desk.after(0.1) == 1
    assert await desk.after(1.4) == 1
    assert await desk.after(0.2) == 2


async def test_the_heartbeat_is_written_without_news() -> None:
    desk = Desk(Pace(heartbeat=600))
    await desk.after(0)
    assert await desk.after(599) == 1
    assert await desk.after(2) == 2
    assert desk.written[0]["heartbeat"] != desk.written[1]["heartbeat"]


async def test_a_refusal_is_backed_off_from_and_retry_after_obeyed() -> None:
    desk = Desk(Pace())
    desk.refusal = ApiError(429, "TooManyRequests", "slow down", retry_after=30)
    assert await desk.after(0) == 0
    assert desk.reporter.problem == "TooManyRequests"
    desk.refusal = None
    assert await desk.after(29) == 0
    assert await desk.after(1.5) == 1
    assert desk.reporter.problem == ""


async def test_after_an_outage_the_newest_state_is_written() -> None:
    desk = Desk(Pace())
    await desk.after(0)
    desk.refusal = ApiUnreachable("connection refused")
    desk.view.running = True
    for _ in range(5):
        await desk.after(100)
    desk.refusal = None
    desk.view.running = False
    desk.view.held = Held(True)
    assert await desk.after(61) == 2
    assert desk.written[-1]["images"][0]["state"] == "Ready"
    count = desk.metrics.registry.get_sample_value("imageprepull_status_writes_total", {"result": "0"})
    assert count is not None
    assert count >= 3


async def test_without_an_object_nothing_is_written_and_a_new_one_gets_everything() -> None:
    desk = Desk(Pace(report_interval=100))
    await desk.after(0)
    desk.generation = None
    assert await desk.after(1000) == 1
    desk.generation = 1
    desk.reporter.forget()
    assert await desk.after(0) == 2


async def test_last_words_do_not_wait() -> None:
    desk = Desk(Pace(report_interval=100))
    await desk.after(0)
    desk.view.running = True
    await desk.reporter.last_words()
    assert len(desk.written) == 2


@given(st.floats(0.1, 1000), st.floats(0, 1, exclude_max=True))
def test_samples_keep_the_interval_within_a_fifth(interval: float, uniform: float) -> None:
    schedule = Schedule()
    schedule.written(100, Pace(report_interval=interval, heartbeat=1e6), uniform)
    gap = schedule.next_write(changed=True) - 100
    assert 0.79 * interval <= gap <= 1.21 * interval


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, Pace(5, 600)),
        (
            {"reportIntervalSeconds": "20", "heartbeatSeconds": "900", "storm": "true"},
            Pace(20, 900, storm=True),
        ),
        ({"reportIntervalSeconds": "soon", "heartbeatSeconds": "-1"}, Pace(5, 600)),
        ({"reportIntervalSeconds": "nan", "heartbeatSeconds": "inf"}, Pace(5, 600)),
    ],
)
def test_the_pace_comes_from_the_shared_object_where_it_makes_sense(
    data: dict[str, str], expected: Pace
) -> None:
    assert pace_from(data, Pace(5, 600)) == expected


def test_a_storm_of_more_than_a_thousand_nodes_is_spread_wider() -> None:
    assert Pace(2).spread == 0
    assert Pace(10, storm=True).spread == 3
    assert Pace(120, storm=True).spread == 15
