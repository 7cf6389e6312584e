"""Kills by seed, at random moments. `python -m tests.faults` is the same for longer."""

from __future__ import annotations

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.faults import again, random_faults, random_way, random_wish
from tests.faults.stage import DURATION, Stage
from tests.faults.tally import Hit, least_hit, missed, rarest

KILLS = 13
"""On each of the two versions."""


@pytest.mark.timeout(400)
async def test_pulls_survive_random_kills(stage: Stage, all_hits: list[Hit]) -> None:
    seed = 0
    while len(stage.hits) < KILLS:
        seed += 1
        way, wish = random_way(seed), random_wish(seed)
        faults = random_faults(
            seed, duration=DURATION, way=way, rare=rarest(stage.hits, way), wanting=least_hit(stage.hits)
        )
        outcome = await stage.round(faults, options=way.options, wish=wish)
        command = (
            f"python -m tests.faults --version {stage.machine.daemon.version} {again(faults, way, wish)}"
        )
        assert not outcome.complaints, f"again: {command}\n{outcome.message}"


def test_no_step_and_no_victim_was_left_out(all_hits: list[Hit]) -> None:
    """By this and the tests before it."""
    if len(all_hits) < 2 * len(Step):
        pytest.skip("only together with the other tests of this folder")
    assert missed(all_hits) == []
