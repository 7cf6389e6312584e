"""The slow resync of the agent's loop, which finds what no event told; hours of it, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from imageprepull.agent.accounts import Delays
from imageprepull.agent.clock import Clock
from imageprepull.agent.node import Held
from imageprepull.agent.reconciler import Reconciler
from imageprepull.resources.nodeprepull import DesiredImage
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import FakeNode, image
from tests.unit.virtual_time import run_virtually


class LoopClock(Clock):
    """The loop's time, and these chances one after the other, the last for ever."""

    def __init__(self, chances: Sequence[float]) -> None:
        self._chances = list(chances)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def uniform(self) -> float:
        return self._chances.pop(0) if len(self._chances) > 1 else self._chances[0]


class NotingNode(FakeNode):
    """Notes when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[tuple[float, str]] = []

    async def held(self, image: DesiredImage) -> Held:
        self.looks.append((asyncio.get_running_loop().time(), image.reference))
        return await super().held(image)


async def lives(
    node: NotingNode, chances: Sequence[float], until: float, lost_at: float | None = None
) -> None:
    """An agent that wants two images, of which one is lost, and no event tells of it."""
    node.holds = {"a", "b"}
    async with asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=LoopClock(chances),
            metrics=AgentMetrics(),
            on_change=lambda: None,
            delays=Delays(resync=300),
        )
        running = tasks.create_task(reconciler.run())
        reconciler.take_spec([image("a"), image("b")])
        if lost_at is not None:
            await asyncio.sleep(lost_at)
            node.holds.discard("b")
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        running.cancel()


def test_everything_is_asked_about_again_and_what_no_event_told_is_mended() -> None:
    node = NotingNode()
    run_virtually(lives(node, [0.5], until=700, lost_at=450))
    assert node.looks == [(moment, name) for moment in (0, 300, 600) for name in "ab"]
    assert node.pins_listed == 3, "and the pins are listed anew"
    assert [call for call in node.calls if call.startswith("pull")] == ["pull b"]


@pytest.mark.parametrize(("chance", "after"), [(0.0, 240), (0.25, 270), (0.75, 330)])
def test_each_resync_is_put_off_by_chance(chance: float, after: float) -> None:
    """Agents that were started together, by a roll-out or after an outage, do not ask together for ever."""
    node = NotingNode()
    run_virtually(lives(node, [chance, 1 - chance], until=700))
    moments = sorted({moment for moment, _ in node.looks})
    assert moments == pytest.approx([0, after, 600]), "the second one has a chance of its own"
