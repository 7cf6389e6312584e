"""The power fails right after an image is ready: what was not written to disk is made anew, what was is not touched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.check import clear, complaints, early_records
from tests.faults.faults import Fault, Victim
from tests.faults.life import life
from tests.faults.node import Machine, connected
from tests.faults.power import after_power_cut, bytes_in_layers
from tests.faults.round import stopped
from tests.faults.stage import Stage

pytestmark = pytest.mark.timeout(200)
READY = Fault(Victim.PAUSE, Step.VISIBLE.value)


async def start_again(stage: Stage, machine: Machine, since: float, *, pulled: bool) -> list[str]:
    """Daemon and agent, as at a boot; what is not right when the agent is idle.

    `pulled`: an agent has come to the end of the pull, before the cut or after it.
    """
    kept = [layer.blob.digest for layer in stage.image.layers] if pulled else []
    # On 1.6 the end of an ingest is not durable: its folder is there again, and the runtime leaves it there.
    runtimes_own = {f"ingest folder {path.name}" for path in machine.ingests.glob("*")}
    await asyncio.to_thread(machine.start)
    machine.daemon.trust(stage.registry.address)
    log = Path(machine.folder / "after.log")
    async with (
        life(machine.folder, stage.reference, stage.image.digest, boot=machine.boot, log=log) as agent,
        connected(machine) as containerd,
    ):
        await agent.until("idle")
        found = await complaints(machine, containerd, stage.image, stage.reference, since, kept=kept)
        assert await agent.stop() == 0
    return [line for line in found if line not in runtimes_own]


CUTS = 4


async def until_something_is_lost(cut: Callable[[], Awaitable[bool]]) -> None:
    """`cut` says whether it took something: a busy machine may write everything to disk before it."""
    for _ in range(CUTS):
        if await cut():
            return
    pytest.fail(f"the kernel had written the layers {CUTS} times: the cut is none")


async def test_the_power_fails_when_the_image_is_ready(stage: Stage) -> None:
    await until_something_is_lost(lambda: cut_when_ready(stage, "background"))


async def test_the_power_fails_when_the_image_is_ready_and_was_synced_before(stage: Stage) -> None:
    assert not await cut_when_ready(stage, "before")


async def cut_when_ready(stage: Stage, sync: str) -> bool:
    """Whether the cut took layers, which are pulled again then; what is there is not."""
    node, since = stage.machine, time.time()
    whole = sum(len(blob) for layer in stage.image.layers for blob in [layer.blob.read()])
    log = node.folder / "before.log"
    agent = life(
        node.folder, stage.reference, stage.image.digest, [READY], boot=node.boot, log=log,
        options=[f"--sync={sync}"],
    )  # fmt: skip
    async with agent as running:
        await running.until("fault")
        await stopped(running)
        with after_power_cut(node) as later:
            lost = bytes_in_layers(later) < 0.9 * bytes_in_layers(node)
            stage.registry.forget()
            assert await start_again(stage, later, since, pulled=sync == "background") == []
            # What nobody has vouched for is not believed, whether it was lost or not.
            assert stage.registry.sent == (whole if sync == "background" else 0)
    await clear(node)
    return lost


async def test_the_power_fails_when_the_blobs_are_kept_and_the_layers_are_not_synced(stage: Stage) -> None:
    await until_something_is_lost(lambda: cut_after_kept(stage))


async def cut_after_kept(stage: Stage) -> bool:
    node, since = stage.machine, time.time()
    log = node.folder / "before.log"
    kept = Fault(Victim.PAUSE, Step.KEPT.value)
    agent = life(node.folder, stage.reference, stage.image.digest, [kept], boot=node.boot, log=log)
    async with agent as running:
        await running.until("fault")
        await stopped(running)
        with after_power_cut(node) as later:
            lost = bytes_in_layers(later) < 0.9 * bytes_in_layers(node)
            stage.registry.forget()
            assert await start_again(stage, later, since, pulled=True) == []
            assert stage.registry.sent == 0
    await clear(node)
    return lost


async def test_the_power_fails_when_the_agent_is_idle(stage: Stage) -> None:
    node, since = stage.machine, time.time()
    log = node.folder / "before.log"
    agent = life(node.folder, stage.reference, stage.image.digest, boot=node.boot, log=log)
    async with agent as running:
        await running.until("idle")
        with after_power_cut(node) as later:
            stage.registry.forget()
            assert await start_again(stage, later, since, pulled=True) == []
            assert stage.registry.sent == 0
        assert await running.stop() == 0
    await clear(node)


@pytest.mark.parametrize("node", ["2.4"], indirect=True)
async def test_a_planted_defect_is_found(stage: Stage) -> None:
    """The same with an agent that believes its layers without having written them: or that test could not fail."""
    await until_something_is_lost(lambda: cut_with_a_defect(stage))


async def cut_with_a_defect(stage: Stage) -> bool:
    node, since = stage.machine, time.time()
    log = node.folder / "before.log"
    agent = life(
        node.folder, stage.reference, stage.image.digest, boot=node.boot, log=log, defect="unwritten"
    )
    async with agent as running:
        await running.until("idle")
        with after_power_cut(node) as later:
            lost = bytes_in_layers(later) < 0.9 * bytes_in_layers(node)
            found = await start_again(stage, later, since, pulled=True)
            assert any(line.startswith("layer ") for line in found) or not lost, found
        assert await running.stop() == 0
    await clear(node)
    return lost


async def test_the_runtime_itself_believes_what_was_not_written(stage: Stage) -> None:
    """The same cut without an agent afterwards: or the tests above could not fail."""
    await until_something_is_lost(lambda: cut_without_an_agent(stage))


async def cut_without_an_agent(stage: Stage) -> bool:
    node = stage.machine
    log = node.folder / "before.log"
    agent = life(node.folder, stage.reference, stage.image.digest, [READY], boot=node.boot, log=log)
    async with agent as running:
        await running.until("fault")
        await stopped(running)
        with after_power_cut(node) as later:
            await asyncio.to_thread(later.start)
            async with connected(later) as containerd:
                assert len(await containerd.images.list()) == 3
                assert await early_records(containerd, stage.image, stage.reference) == []
            lost = bytes_in_layers(later) < 0.9 * bytes_in_layers(node)
    await clear(node)
    return lost
