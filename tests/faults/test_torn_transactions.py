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
    """At each of its writes to disk, one after the other; an attempt that outlives one may come by no other."""
    writes, torn = SYNCS if step is not Step.PLACED else 2, 0
    while torn < writes:
        outcome = await stage.round([Fault(Victim.TORN, step.value)] * (writes - torn), torn=torn)
        assert outcome.complaints == [], outcome.message
        assert outcome.hits
        torn += len(outcome.hits)
