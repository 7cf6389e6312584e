"""The harness must find defects, or that it finds none says nothing: each of these turns it red."""

from __future__ import annotations

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.defects import DEFECTS
from tests.faults.faults import FAST_STEPS, SWEPT, Fault, Victim
from tests.faults.stage import Stage

ONLY_NEW = pytest.mark.parametrize("node", ["2.4"], indirect=True)
DIES = [Fault(Victim.AGENT, Step.FETCHED.value, 12)]
CASES: dict[str, tuple[list[Fault], str]] = {
    "unvouched": ([Fault(Victim.GAP, Step.UNPACKED.value, 3)], "only in containerd's"),
    "leaked-lease": ([], "lease "),
    "leaked-staging": ([], "active snapshot "),
    "leaked-spool": ([], "spool file "),
    "refetched-range": (DIES, "were fetched again"),
    "unnoted-range": (DIES, "were fetched again"),
    "early-record": ([Fault(Victim.AGENT, Step.COMMITTED.value, 2)], "but a record is there"),
}


@ONLY_NEW
@pytest.mark.parametrize("defect", DEFECTS)
async def test_a_planted_defect_is_found(stage: Stage, defect: str) -> None:
    faults, expected = CASES[defect]
    outcome = await stage.round(faults, defect=defect)
    stage.hits.clear()  # they say nothing about the product
    assert any(expected in line for line in outcome.complaints), outcome.complaints


@ONLY_NEW
async def test_without_a_defect_or_a_fault_nothing_is_found(stage: Stage) -> None:
    outcome = await stage.round([])
    assert (outcome.complaints, outcome.reasons, outcome.hits) == ([], [], [])
    assert outcome.steps.keys() - {SWEPT} == set(FAST_STEPS)
    assert outcome.steps[Step.UNPACKED] == len(stage.image.layers)
