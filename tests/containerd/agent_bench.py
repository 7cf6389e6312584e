"""The agent's reconciler over a real containerd, for the tests that need both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from imageprepull.agent.accounts import Delays
from imageprepull.agent.clock import Clock
from imageprepull.agent.containerd_node import ContainerdNode
from imageprepull.agent.image import Gate
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.settings import AgentSettings
from imageprepull.kube.access import ClusterAccess
from imageprepull.pulling.space import NoRoom
from imageprepull.resources.nodeprepull import Desired, ImageState
from imageprepull.runtime.discovery import discover
from imageprepull.telemetry.metrics import AgentMetrics
from tests.containerd.pull_bench import BOOT, OWNER, PullBench


class Agent:
    """A reconciler, and the question when it has come so far."""

    def __init__(self, reconciler: Reconciler, node: ContainerdNode, changed: asyncio.Event) -> None:
        self.reconciler = reconciler
        self.node = node
        self._changed = changed

    async def until(self, *states: ImageState | str) -> None:
        """Wait for the states of the entries, in the spec's order; a layer's state stands for a pull's progress."""
        await self._until(lambda: self._is(states))

    async def until_strays(self, *references: str) -> None:
        """Wait until just these are reported as pinned by us and named by no entry."""
        await self._until(lambda: [pin.reference for pin in self.reconciler.stray_pins] == list(references))

    async def until_pinned(self, pinned: bool) -> None:
        """Wait until the runtime has said so of all entries."""
        async with asyncio.timeout(60):
            while not all(
                view.held and view.held.present and view.held.our_pin is pinned
                for view in self.reconciler.views.values()
            ):
                self._changed.clear()
                await self._changed.wait()

    async def until_believed(self) -> None:
        """Wait until the agent has seen the pins that it set; one that goes before that waits for `Delays.repin`."""
        await self._until(lambda: all(view.pin_due == 0 for view in self.reconciler.views.values()))

    async def until_ended(self) -> None:
        """Wait until nothing is pulled."""
        await self._until(lambda: not self.reconciler.running)

    async def until_let_go(self) -> None:
        """Wait until every order to let go of an image is carried out, or says what it waits for."""
        views = self.reconciler.views.values()
        gone = [view for view in views if view.desired.state is Desired.ABSENT]
        await self._until(lambda: all(view.released or view.backoff is not None for view in gone))

    async def until_given_back(self) -> None:
        """Wait until no unfinished pull holds anything, under a gate for the whole node."""
        await self._until(lambda: self.reconciler.unfinished_left == 0)

    async def passed(self) -> None:
        """One pass of a reconciler that nobody runs: everything is asked anew, and what follows from it is over."""
        self.reconciler.suspect_all()
        await self.reconciler.step()
        await self.until_ended()

    async def _until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not check():
                self._changed.clear()
                await self._changed.wait()

    def _is(self, states: tuple[ImageState | str, ...]) -> bool:
        views = list(self.reconciler.views.values())
        return len(views) == len(states) and all(
            state == view.state
            or (view.progress and state in map(str, (one.state for one in view.progress.layers)))
            for view, state in zip(views, states, strict=True)
        )


@asynccontextmanager
async def agent_of(
    bench: PullBench,
    *,
    runs: bool = True,
    gate: Callable[[NoRoom | None], Gate | None] = lambda _: None,
    clock: Clock | None = None,
) -> AsyncIterator[Agent]:
    """Without `runs` the test makes its steps. `gate`: what the disks say."""
    settings = AgentSettings(access=ClusterAccess(""), node_name=OWNER, namespace="none")
    runtime = await discover(bench.containerd)
    platform = bench.request("a.io/x").platform
    node = ContainerdNode(bench.containerd, bench.puller, bench.client, runtime, settings, platform, BOOT)
    changed = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=clock or Clock(),
            metrics=AgentMetrics(),
            on_change=changed.set,
            delays=Delays(retry_base=0.05),
            gate=gate,
        )
        running = tasks.create_task(reconciler.run()) if runs else None
        yield Agent(reconciler, node, changed)
        if running is not None:
            running.cancel()
