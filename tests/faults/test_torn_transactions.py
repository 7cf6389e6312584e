"""The daemon dies between the two transactions of one call, which then say different things."""

from __future__ import annotations

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.faults import Fault, Victim
from tests.faults.stage import Stage
from tests.faults.torn import SYNCS

pytestmark = pytest.mark.timeout(300)
NEXT = {
    Step.UNPACKED: "Prepare",
    Step.VOUCHED: "Commit",
    Step.COMMITTED: "Prepare or Remove",
    Step.DOCUMENTED: "Prepare",
    Step.PLACED: "content Commit",
}
"""The call that follows a step."""


@pytest.mark.parametrize("step", NEXT)
async def test_a_torn_transaction(stage: Stage, step: Step) -> None:
    """At each of its writes to disk, one after the other."""
    faults = [Fault(Victim.TORN, step.value)] * (SYNCS if step is not Step.PLACED else 2)
    outcome = await stage.round(faults)
    assert outcome.complaints == []
    # An attempt may outlive one of them, and begins no other then.
    assert len(outcome.hits) >= len(faults) - (step is Step.DOCUMENTED)
