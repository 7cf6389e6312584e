"""The agent's loops together, over a fake API server and a fake node; real time, short delays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imageprepull.agent.loops import serve_node
from imageprepull.agent.node import Compared
from imageprepull.agent.pace import CONFIGMAP, Pace
from imageprepull.agent.settings import AgentSettings
from imageprepull.agent.spool_lock import locked
from imageprepull.agent.watch import PaceWatch, SpecWatch
from imageprepull.kube.cache import Change
from imageprepull.kube.client import ApiClient
from imageprepull.kube.informer import Timings
from imageprepull.resources.vouching import VOUCHED
from imageprepull.telemetry.health import Health
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import FakeNode
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status

QUICK = Timings(silence=5, relist_jitter=0.01, backoff_base=0.01, backoff_cap=0.05)
DIGEST = "sha256:" + "a" * 64
LEASE = "imageprepull-operator"


class Stage:
    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.node = FakeNode()
        self.swept: list[set[str] | None] = []
        self.sweeping = asyncio.Condition()
        self.lose: Callable[[Collection[str]], None] = lambda _: None
        self.health = Health(AgentMetrics().registry)
        self.task: asyncio.Task[None] | None = None
        self.renewals = 0

    async def want(self, *references: str, generation: int = 1, uid: str = "") -> None:
        images = [{"reference": reference, "digest": DIGEST} for reference in references]
        document = await self.server.put("n1", uid=uid, spec={"images": images})
        document["metadata"]["generation"] = generation

    def statuses(self) -> list[Any]:
        return [body["status"] for body in self.server.bodies if body]

    async def until_status(self, condition: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(30), self.server.asked:
            await self.server.asked.wait_for(lambda: any(condition(s) for s in self.statuses()))
        return next(s for s in self.statuses() if condition(s))

    async def until_pulling(self, reference: str) -> None:
        await self.until_status(lambda s: states(s).get(reference) == "Pulling")

    async def sweep(self, wanted: Callable[[], Collection[str]] | None) -> None:
        async with self.sweeping:
            self.swept.append(None if wanted is None else set(wanted()))
            self.sweeping.notify_all()

    async def until_swept(self, *sweeps: set[str] | None) -> None:
        async with asyncio.timeout(30), self.sweeping:
            await self.sweeping.wait_for(lambda: len(self.swept) >= len(sweeps))
        assert self.swept == list(sweeps)

    def looks(self) -> int:
        """How often the operator's Lease was read."""
        return sum(request.path.endswith(LEASE) for request in self.server.requests)

    async def lead(self) -> None:
        """An operator that renews its Lease as soon as two more have looked at it."""
        term = {"holderIdentity": "a", "acquireTime": "0", "leaseDurationSeconds": 15}
        while True:
            self.renewals += 1
            now = str(self.renewals)
            await self.server.put(
                LEASE, namespace="ns", annotations={VOUCHED: now}, spec={**term, "renewTime": now}
            )
            looked = self.looks()
            async with self.server.asked:
                await self.server.asked.wait_for(lambda looked=looked: self.looks() > looked + 1)  # type: ignore[misc]

    async def follow(self, on_loss: Callable[[Collection[str]], None], *_: Callable[..., None]) -> None:
        self.lose = on_loss
        await asyncio.Event().wait()


def states(document: Any) -> dict[str, str]:
    return {entry["reference"]: entry["state"] for entry in document["images"]}


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[None]:
    settings = AgentSettings(
        access=stage.server.access(),
        node_name="n1",
        namespace="ns",
        pace=Pace(report_interval=0.05),
        watch=QUICK,
        lease_poll=0.01,
        stop_timeout=4,
    )
    async with ApiClient(settings.access, timeout=2) as api:
        stage.task = asyncio.create_task(
            serve_node(
                settings,
                stage.node,
                api,
                health=stage.health,
                metrics=AgentMetrics(),
                sweep=stage.sweep,
                follow=stage.follow,
            )
        )
        try:
            yield
        finally:
            stage.task.cancel()
            await asyncio.wait([stage.task])
            assert stage.task.cancelled(), stage.task.exception()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with serve() as server:
        yield Stage(server)


async def test_from_spec_to_pull_to_ready_status(stage: Stage) -> None:
    await stage.want("a")
    async with running(stage):
        await stage.until_pulling("a")
        assert stage.swept == [None, {DIGEST}]
        stage.node.succeed("a")
        ready = await stage.until_status(lambda s: states(s) == {"a": "Ready"})
        assert (ready["observedGeneration"], ready["summary"]["ready"]) == (1, 1)
        assert [check() for check in [*stage.health.ready.values(), *stage.health.live.values()]] == [
            None
        ] * 5


async def test_a_kubelet_that_ignores_pins_shows_in_the_status(stage: Stage) -> None:
    entry = {"reference": "a", "digest": DIGEST, "pin": True}
    await stage.server.put("n1", spec={"images": [entry], "kubeletWithoutPins": "v1.28.1"})
    stage.node.holds.add("a")
    async with running(stage):
        ready = await stage.until_status(lambda s: states(s) == {"a": "Ready"})
        assert ready["images"][0]["reason"] == "PinIneffective"


async def test_a_node_that_nobody_chose_is_swept_of_everything_and_nothing_is_written(stage: Stage) -> None:
    async with running(stage):
        await stage.until_swept(None, set())
        assert stage.statuses() == []
        await stage.want("a")
        await stage.until_pulling("a")
    assert stage.swept == [None, set()]


async def test_without_an_answer_of_the_api_server_only_what_serves_nobody_is_swept(stage: Stage) -> None:
    await stage.want("a")
    stage.server.faults += [Fault("GET", 500, status(500, "InternalError")) for _ in range(20)]
    async with running(stage):
        await stage.server.until_asked("GET", 8)
        assert stage.swept == [None]
        stage.server.faults.clear()
        await stage.until_swept(None, {DIGEST})


@pytest.mark.parametrize("then", ["readable", "gone"])
async def test_an_object_that_cannot_be_read_wants_something_that_nobody_knows(
    stage: Stage, then: str
) -> None:
    await stage.server.put("n1", spec={"images": [{"reference": 7}]})
    async with running(stage):
        await stage.server.until_asked("WATCH", 2)
        assert stage.swept == [None]
        if then == "readable":
            await stage.want("a")
            await stage.until_swept(None, {DIGEST})
        else:
            await stage.server.remove("n1")
            await stage.until_swept(None, set())


async def test_a_deleted_object_stops_and_removes_nothing_and_a_new_one_is_told_everything(
    stage: Stage,
) -> None:
    await stage.want("a")
    stage.node.holds.add("a")
    async with running(stage):
        await stage.until_status(lambda s: states(s) == {"a": "Ready"})
        await stage.server.remove("n1")
        count = len(stage.statuses())
        await stage.want("a", generation=1, uid="another")
        async with asyncio.timeout(30), stage.server.asked:
            await stage.server.asked.wait_for(
                lambda: len(stage.statuses()) > count and states(stage.statuses()[-1]) == {"a": "Ready"}
            )
        # A lease that an earlier agent may have left is no image.
        assert not [call for call in stage.node.calls if not call.startswith(("held", "abandon"))]


async def test_one_proof_that_an_operator_lives_is_enough_for_thirty_images(stage: Stage) -> None:
    orders = [
        {"reference": f"r{n}", "digest": f"sha256:{n:064x}", "state": "Absent", "onRemoval": "Delete"}
        for n in range(30)
    ]
    await stage.server.put("n1", spec={"images": orders})
    leading = asyncio.create_task(stage.lead())
    async with running(stage):
        await stage.until_status(lambda s: set(states(s).values()) == {"Absent"})
    leading.cancel()
    removed = [call for call in stage.node.calls if call.startswith("remove")]
    assert removed == [f"remove r{n}" for n in range(30)]
    assert 30 + 2 <= stage.looks() <= 30 + 6, "each looks once whether the leader leads still"


async def test_an_order_that_comes_back_with_a_restored_object_is_proven_anew(stage: Stage) -> None:
    """It has the uid of before, and what an operator did before says nothing of it: it had no time to take it back."""
    order = {"reference": "a", "digest": DIGEST, "state": "Absent", "onRemoval": "Delete"}
    await stage.server.put("n1", uid="mine", spec={"images": [order]})
    stage.node.users = "c1"
    leading = asyncio.create_task(stage.lead())

    def removed() -> bool:
        return "remove a" in stage.node.calls

    async with running(stage):
        await stage.until_status(lambda s: s["images"] and s["images"][0].get("reason") == "ImageInUse")
        leading.cancel()
        await stage.server.remove("n1")
        stage.node.users = ""
        looked = stage.looks()
        await stage.server.put("n1", uid="mine", spec={"images": [order]})
        async with asyncio.timeout(30), stage.server.asked:
            await stage.server.asked.wait_for(lambda: removed() or stage.looks() > looked + 4)
        assert not removed()
        leading = asyncio.create_task(stage.lead())
        await stage.until_status(lambda s: states(s) == {"a": "Absent"})
        assert removed()
    leading.cancel()


@pytest.mark.parametrize("ordered", ["n1", "n2"])
async def test_what_an_earlier_agent_has_compared_is_compared_again_only_by_another_order(
    stage: Stage, ordered: str
) -> None:
    entry = {"reference": "a", "digest": DIGEST, "repair": ordered}
    report = {**entry, "state": "Ready", "repaired": "n1", "repairResult": "2 layers are whole"}
    await stage.server.put("n1", spec={"images": [entry]}, status={"images": [report]})
    stage.node.holds.add("a")
    async with running(stage):
        if ordered == "n2":
            await stage.until_status(lambda s: s["images"] and s["images"][0]["repaired"] == "n1")
            stage.node.verifications["a"].set_result(Compared("1 layer is whole"))
        ready = await stage.until_status(
            lambda s: states(s) == {"a": "Ready"} and s["images"][0].get("repaired") == ordered
        )
        result = {"n1": "2 layers are whole", "n2": "1 layer is whole"}[ordered]
        assert ready["images"][0]["repairResult"] == result
        assert ("verify a" in stage.node.calls) == (ordered == "n2")


async def test_a_lost_image_is_pulled_again(stage: Stage) -> None:
    await stage.want("a")
    stage.node.holds.add("a")
    async with running(stage):
        await stage.until_status(lambda s: states(s) == {"a": "Ready"})
        stage.node.holds.clear()
        stage.lose(())
        await stage.until_pulling("a")


async def test_a_refused_status_is_written_again(stage: Stage) -> None:
    stage.server.faults += [Fault("PATCH", code, status(code, "No")) for code in (409, 500)]
    await stage.want("a")
    async with running(stage):
        async with asyncio.timeout(30):
            await stage.server.until_asked("PATCH", 3)
        await stage.until_status(lambda s: states(s) == {"a": "Pulling"})


async def test_the_end_cancels_pulls_and_says_so(stage: Stage) -> None:
    await stage.want("a")
    async with running(stage):
        await stage.until_pulling("a")
    assert "cancelled a" in stage.node.calls
    assert not [call for call in stage.node.calls if call.startswith(("abandon", "unpin"))]
    assert states(stage.statuses()[-1]) == {"a": "Waiting"}


async def test_an_unreadable_spec_keeps_the_last_one(stage: Stage) -> None:
    heard: list[Any] = []
    async with ApiClient(stage.server.access()) as api:
        watch = SpecWatch(api, "n1", QUICK, lambda old, new: heard.append(new))
        good = await stage.server.put("n1", spec={"images": [{"reference": "a", "digest": DIGEST}]})
        watch.take(Change("added", good, None, witnessed=True))
        bad = await stage.server.put("n1", spec={"images": [{"reference": 7}]})
        watch.take(Change("modified", bad, good, witnessed=True))
    assert len(heard) == 1
    assert "cannot read the NodePrepull" in watch.problem
    assert watch.current is heard[0]


async def test_the_pace_falls_back_to_the_flags_when_the_shared_object_goes(stage: Stage) -> None:
    paces: list[Pace] = []
    async with ApiClient(stage.server.access()) as api:
        watch = PaceWatch(api, "ns", QUICK, Pace(3), paces.append)
        shared = await stage.server.put(CONFIGMAP, namespace="ns", data={"reportIntervalSeconds": "60"})
        watch.take(Change("added", shared, None, witnessed=True))
        watch.take(Change("deleted", shared, shared, witnessed=True))
    assert [pace.report_interval for pace in paces] == [60, 3]


async def test_two_agents_exclude_each_other_and_the_second_says_why_it_waits(tmp_path: Path) -> None:
    reasons: list[str] = []
    waiting = asyncio.Event()

    def note(reason: str) -> None:
        reasons.append(reason)
        waiting.set()

    async def second() -> None:
        async with locked(tmp_path / "spool", retry=0.01, on_wait=note):
            pass

    async with locked(tmp_path / "spool", retry=0.01, on_wait=lambda _: None):
        task = asyncio.create_task(second())
        await waiting.wait()
        assert not task.done()
        assert "another agent holds" in reasons[0]
    async with asyncio.timeout(30):
        await task
    assert reasons[-1] == ""
