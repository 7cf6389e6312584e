"""Agent and daemon die at each step, one after the other: whatever is left, the next start finishes the image."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.faults import AFTER_RECORDS, BEFORE_RECORDS, PORTABLE, Fault, Victim
from tests.faults.stage import Stage

pytestmark = pytest.mark.timeout(300)
BOTH = pytest.mark.parametrize("victim", [Victim.AGENT, Victim.DAEMON])


async def survive(stage: Stage, faults: Sequence[Fault], *options: str) -> None:
    """Each fault must happen, right after its step.

    All in one pull if that can be; what a pull passes by while the daemon is down is for the next pull.
    """
    left = list(faults)
    while left:
        outcome = await stage.round(left, options=options)
        assert not outcome.complaints, outcome.message
        hits = [(hit.victim, hit.step) for hit in outcome.hits]
        assert hits, f"{left[0]} never happened"
        assert hits == [(one.victim, one.step) for one in left[: len(hits)]]
        left = left[len(hits) :]


@BOTH
async def test_death_before_the_records(stage: Stage, victim: Victim) -> None:
    steps = [(step, 1) for step in BEFORE_RECORDS] + [(Step.RECORDED, 1), (Step.RECORDED, 2)]
    await survive(stage, [Fault(victim, step.value, occurrence) for step, occurrence in steps])


@pytest.mark.parametrize("step", AFTER_RECORDS)
async def test_the_agent_dies_after_the_records(stage: Stage, step: Step) -> None:
    await survive(stage, [Fault(Victim.AGENT, step.value)])


async def test_the_daemon_dies_after_the_records(stage: Stage) -> None:
    await survive(stage, [Fault(Victim.DAEMON, step.value) for step in AFTER_RECORDS])


@BOTH
async def test_death_after_the_last_record(stage: Stage, victim: Victim) -> None:
    await survive(stage, [Fault(victim, Step.RECORDED.value, 3)])


@BOTH
async def test_death_on_the_portable_path(stage: Stage, victim: Victim) -> None:
    steps = (Step.INGESTED, Step.PREPARED, Step.APPLIED, Step.COMMITTED)
    await survive(stage, [Fault(victim, step.value) for step in steps], *PORTABLE.options)


@pytest.mark.parametrize("victim", [Victim.WORKER, Victim.ZYGOTE, Victim.CONNECTION])
async def test_what_dies_beside_the_agent_costs_no_attempt(stage: Stage, victim: Victim) -> None:
    outcome = await stage.round([Fault(victim, Step.FETCHED.value, occurrence) for occurrence in (3, 9)])
    assert (outcome.complaints, outcome.reasons) == ([], []), outcome.message
    assert outcome.hits
