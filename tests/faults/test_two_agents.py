"""Two agents at once, as while a DaemonSet rolls over: the later one waits, touches nothing, and then takes over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from imageprepull.pulling.steps import Step
from tests.cluster.bare_api import free_port
from tests.containerd.conftest import leftovers
from tests.faults.check import complaints, empty
from tests.faults.faults import Fault, Victim
from tests.faults.life import Life, life
from tests.faults.node import Machine, connected
from tests.faults.round import stopped
from tests.faults.stage import Stage

COMMAND = (
    sys.executable,
    "-c",
    "from imageprepull.cli.main import main; main()",
    "agent",
    "--log-format=json",
)
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
            kept = [layer.blob.digest for layer in stage.image.layers] if end == "stopped" else []
            found = await complaints(
                stage.machine, containerd, stage.image, stage.reference, since, kept=kept
            )
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


@dataclass
class Agent:
    """A whole agent, as a pod runs it; `events` are those of its log so far."""

    process: asyncio.subprocess.Process
    events: list[str] = field(default_factory=list)

    async def until(self, event: str) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            async for line in self.process.stderr:
                self.events.append(json.loads(line)["event"] if line.startswith(b"{") else line.decode())
                if self.events[-1] == event:
                    return
        raise AssertionError(f"it ended before it said {event!r}: {self.events}")

    async def end(self, how: str) -> int:
        if how == "killed":
            self.process.kill()
        else:
            self.process.terminate()
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def whole_agent(node: Machine, port: int) -> AsyncIterator[Agent]:
    """Without an API server: its port leads nowhere."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", *COMMAND),
        *("--node-name=n", "--namespace=none", "--server=http://127.0.0.1:9", "--extraction=portable"),
        f"--address={node.daemon.address}",
        f"--spool-dir={node.spool}",
        f"--boot-id-file={node.boot}",
        f"--health-port={port}",
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Agent(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def alive(port: int) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/livez") as answer:
        return answer.status


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_on_one_port_of_the_host_the_second_agent_waits_and_takes_over(node: Machine, end: str) -> None:
    port = free_port()
    async with whole_agent(node, port) as one:
        await one.until("swept")
        async with whole_agent(node, port) as two:
            await two.until("waiting for the health port")
            assert two.process.returncode is None
            assert await alive(port) == 200, "it is the first one's answer"
            await one.end(end)
            await two.until("swept")
            assert await alive(port) == 200
            assert two.events.count("waiting for the health port") == 1
            assert await two.end("stopped") == 0
