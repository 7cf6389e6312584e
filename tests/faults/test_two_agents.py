"""Two agents at once, as while a DaemonSet rolls over: the later one waits, touches nothing, and then takes over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from imageprepull.pulling.steps import Step
from tests.containerd.conftest import leftovers
from tests.faults.check import complaints, empty
from tests.faults.faults import Fault, Victim
from tests.faults.life import Life, life
from tests.faults.node import connected
from tests.faults.round import stopped
from tests.faults.stage import Stage

PAUSED = Fault(Victim.PAUSE, Step.FETCHED.value, 8)


@contextlib.asynccontextmanager
async def agent(stage: Stage, name: str, *faults: Fault) -> AsyncIterator[Life]:
    found = stage.machine
    log = found.folder / f"{name}.log"
    stage_life = life(found.folder, stage.reference, stage.image.digest, faults, boot=found.boot, log=log)
    async with stage_life as one:
        yield one


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_a_second_agent_waits_for_the_end_of_the_first(stage: Stage, end: str) -> None:
    since = time.time()
    stage.registry.forget()
    async with agent(stage, "one", PAUSED) as one, connected(stage.machine) as containerd:
        await one.until("fault")
        await stopped(one)
        before, asked = await leftovers(containerd), dict(stage.registry.asked)
        async with agent(stage, "two") as two:
            assert "another agent holds" in " ".join(await two.until("waiting"))
            assert (await leftovers(containerd), dict(stage.registry.asked)) == (before, asked)
            if end == "killed":
                one.kill()
            else:
                one.go_on()
                await one.until("idle")
                assert two.lines.empty(), "it still waits"
                assert await one.stop() == 0
            await two.until("idle")
            found = await complaints(stage.machine, containerd, stage.image, stage.reference, since)
            assert found == []
            assert await two.stop() == 0
        assert await empty(stage.machine, containerd) == []
    if end == "stopped":
        assert stage.registry.sent == sum(len(blob) for blob in stage.registry.blobs.values())


async def test_what_is_not_ours_is_left_alone(stage: Stage) -> None:
    """A life that was killed leaves its lease, and beside it are those of another tool and of another node's agent."""
    async with connected(stage.machine) as containerd:
        await containerd.leases.create("foreign", {"imageprepull.io/lease": "another-node"}, 600)
        leased = containerd.with_lease("foreign")
        await leased.snapshots.prepare("overlayfs", "extract-foreign", "", {})
        async with agent(stage, "one", Fault(Victim.AGENT, Step.COMMITTED.value, 3)) as one:
            await one.until("fault")
            await one.process.wait()
        async with agent(stage, "two") as two:
            await two.until("idle")
            left = await leftovers(containerd)
            assert (left.leases, left.active_snapshots) == (["foreign"], ["extract-foreign"])
            assert await two.stop() == 0
        await leased.snapshots.remove("overlayfs", "extract-foreign")
        await containerd.leases.delete("foreign")
        assert await empty(stage.machine, containerd) == []
