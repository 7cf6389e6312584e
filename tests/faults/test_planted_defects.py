"""The harness must find defects, or that it finds none says nothing: each of these turns it red."""

from __future__ import annotations

import pytest

from imageprepull.pulling.steps import Step
from tests.faults import life
from tests.faults.defects import DEFECTS
from tests.faults.faults import FAST_STEPS, SWEPT, Fault, Victim, Wish
from tests.faults.stage import Stage

ONLY_NEW = pytest.mark.parametrize("node", ["2.4"], indirect=True)
DIES = Fault(Victim.AGENT, Step.FETCHED.value, 12)
HALF_UNPACKED = Fault(Victim.AGENT, Step.COMMITTED.value, 2)
ROUNDS: list[tuple[list[Fault], dict[str, str]]] = [
    (
        [],
        {
            "leaked-lease": "lease ",
            "leaked-staging": "active snapshot ",
            "leaked-spool": "spool file ",
            "unkept-blob": "is not kept",
            "unmanaged-records": "lacks the labels ['imageprepull.io/managed']",
            "leaked-mount": "is left mounted",
            "orphan": "sleep",
        },
    ),
    (
        [DIES],
        {
            "refetched-range": "finished bytes of",
            "documents-again": "the document ",
            "unmarked-pins": "has the pins [('io.cri-containerd.pinned'",
        },
    ),
    ([DIES, HALF_UNPACKED], {"unnoted-range": "finished bytes of", "early-record": "but a record is there"}),
    (
        [Fault(Victim.GAP, Step.UNPACKED.value, 3)],
        {
            "unvouched": "only in containerd's",
            "unlabelled-blobs": "lacks the labels [('containerd.io/gc.ref.content.l",
        },
    ),
]
"""Those of a round show by different complaints."""
BY_POWER_CUTS = {"unwritten"}
"""See test_power_cut.py."""
HUNG = "hung"


@ONLY_NEW
@pytest.mark.parametrize(("faults", "expected"), ROUNDS, ids=["+".join(expected) for _, expected in ROUNDS])
async def test_planted_defects_are_found(stage: Stage, faults: list[Fault], expected: dict[str, str]) -> None:
    outcome = await stage.round(faults, defect=",".join(expected), wish=Wish(polite=True, pin=True))
    stage.hits.clear()  # they say nothing about the product
    hidden = [name for name, text in expected.items() if not any(text in line for line in outcome.complaints)]
    assert hidden == [], outcome.complaints


def test_every_defect_is_planted_somewhere() -> None:
    planted = {name for _, expected in ROUNDS for name in expected}
    assert planted | BY_POWER_CUTS | {HUNG} == DEFECTS.keys()


@ONLY_NEW
async def test_a_pull_that_hangs_is_found_and_shows_what_everybody_waits_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "PATIENCE", 5.0)
    outcome = await stage.round([], defect=HUNG)
    assert outcome.complaints == ["not finished in time"]
    for waits in ("in never", "in run", "in follow_losses"):
        assert waits in outcome.log, outcome.log


@ONLY_NEW
async def test_without_a_defect_or_a_fault_nothing_is_found(stage: Stage) -> None:
    outcome = await stage.round([])
    assert (outcome.complaints, outcome.reasons, outcome.hits) == ([], [], [])
    assert outcome.steps.keys() - {SWEPT} == set(FAST_STEPS)
    assert outcome.steps[Step.UNPACKED] == len(stage.image.layers)


@ONLY_NEW
async def test_a_fault_that_finds_nothing_to_hit_is_not_counted(stage: Stage) -> None:
    """The second death of one process, and what is over when its turn comes."""
    there = Fault(Victim.ZYGOTE, Step.FETCHED.value, 2)
    gone = [
        Fault(Victim.ZYGOTE, Step.COMMITTED.value),
        Fault(Victim.CONNECTION, Step.VISIBLE.value),
        Fault(Victim.LEASE, Step.RELEASED.value),
        Fault(Victim.GAP, Step.SYNCED.value),
    ]
    outcome = await stage.round([there, *gone])
    assert (outcome.complaints, outcome.reasons) == ([], [])
    assert [hit.victim for hit in outcome.hits] == [Victim.ZYGOTE]
    assert [hit.victim for hit in outcome.spared] == [fault.victim for fault in gone]
