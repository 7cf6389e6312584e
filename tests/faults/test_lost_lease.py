"""Another tool deletes the lease under a pull, and a collection runs: nothing damaged is ever committed."""

from __future__ import annotations

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.faults import Fault, Victim
from tests.faults.stage import Stage

pytestmark = pytest.mark.timeout(200)
STEPS = (
    Step.DOCUMENTED,
    Step.STAGED,
    Step.UNPACKED,
    Step.PREPARED,
    Step.EXCHANGED,
    Step.COMMITTED,
    Step.RECORDED,
)


async def test_a_lease_that_vanishes_at_each_step(stage: Stage) -> None:
    outcome = await stage.round([Fault(Victim.LEASE, step.value) for step in STEPS])
    assert outcome.complaints == [], outcome.message
    assert [hit.step for hit in outcome.hits] == list(STEPS)
    assert stage.registry.again == 0


async def test_a_lease_that_vanishes_right_before_the_records(stage: Stage) -> None:
    """The runtime takes records of an image that is not there any more."""
    outcome = await stage.round([Fault(Victim.LEASE, Step.DOCUMENTED.value, 2)])
    assert (outcome.complaints, outcome.reasons) == ([], []), outcome.message
    assert outcome.steps[Step.RECORDED] == 6, "the first three are taken back"


async def test_a_collection_that_is_half_through_a_staged_tree(stage: Stage) -> None:
    outcome = await stage.round(
        [Fault(Victim.GAP, Step.UNPACKED.value, occurrence) for occurrence in (1, 6, 3)]
    )
    assert outcome.complaints == [], outcome.message
    assert len(outcome.hits) == 3


async def test_a_lease_that_vanishes_too_often_is_a_failure_with_its_reason(stage: Stage) -> None:
    outcome = await stage.round([Fault(Victim.LEASE, Step.ASKED.value)] * 4)
    assert outcome.complaints == [], outcome.message
    assert outcome.reasons == ["RuntimeLostLayers"], "and the attempt after it finishes the image"
