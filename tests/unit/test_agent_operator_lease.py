"""Whether an operator lives, as its Lease tells somebody who trusts no clock but his own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from imageprepull.agent.clock import Clock
from imageprepull.agent.node import NodeError
from imageprepull.agent.operator_lease import OperatorLease
from imageprepull.kube.client import ApiClient
from imageprepull.resources.vouching import VOUCHED
from tests.unit.agent_doubles import StillClock
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status

NAME = "imageprepull-operator"
LONG = 60.0
CLOCK = Clock()


async def put(server: FakeApiServer, spec: dict[str, Any], *, vouched: bool = True) -> dict[str, Any]:
    annotations = {VOUCHED: str(spec["renewTime"])} if vouched else None
    return await server.put(NAME, namespace="ns", annotations=annotations, spec=spec)


@dataclass
class Stage:
    server: FakeApiServer
    lease: OperatorLease
    looks: int = 0

    async def write(self, **spec: Any) -> None:
        await put(self.server, spec)

    async def after_another_look(self, **spec: Any) -> None:
        """So that each state is seen, and time plays no part."""
        self.looks = self.server.methods().count("GET") + 1
        await self.server.until_asked("GET", self.looks)
        await self.write(**spec)


def term(
    renewed: int, holder: str | None = "a", *, since: str = "1", seconds: float = LONG
) -> dict[str, Any]:
    return {
        "holderIdentity": holder,
        "acquireTime": since,
        "renewTime": str(renewed),
        "leaseDurationSeconds": seconds,
    }


@asynccontextmanager
async def proving(stage: Stage) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(stage.lease.prove(CLOCK.now()))
    try:
        async with asyncio.timeout(30):
            yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        yield Stage(server, OperatorLease(api, namespace="ns", name=NAME, poll=0.01, margin=0, clock=CLOCK))


async def test_who_renews_twice_lives(stage: Stage) -> None:
    await stage.write(**term(10))
    async with proving(stage) as task:
        await stage.after_another_look(**term(11))
        await stage.server.until_asked("GET", stage.looks + 3)
        assert not task.done(), "once may be a moment ago"
        await stage.after_another_look(**term(12))
        await task


async def test_who_has_just_begun_to_lead_has_to_renew_twice_as_well(stage: Stage) -> None:
    await stage.write(**term(10))
    async with proving(stage) as task:
        await stage.after_another_look(**term(11, None))
        await stage.after_another_look(**term(12, "b", since="12"))
        await stage.after_another_look(**term(13, "b", since="12"))
        await stage.server.until_asked("GET", stage.looks + 3)
        assert not task.done()
        await stage.after_another_look(**term(14, "b", since="12"))
        await task


@pytest.mark.parametrize(
    ("holder", "message"), [("a", "a has not renewed it for 0.1 s"), (None, "nobody holds it")]
)
async def test_who_renews_no_more_is_away_and_is_believed_so_until_the_lease_changes(
    stage: Stage, holder: str | None, message: str
) -> None:
    await stage.write(**term(10, holder, seconds=0.1))
    with pytest.raises(NodeError, match=message) as caught:
        await stage.lease.prove(CLOCK.now())
    assert (caught.value.reason, caught.value.permanent) == ("OperatorAway", False)
    assert f"Lease ns/{NAME}" in str(caught.value)
    asked = len(stage.server.requests)
    with pytest.raises(NodeError, match=message):
        await stage.lease.prove(CLOCK.now())
    assert len(stage.server.requests) == asked + 1, "agents of a cluster without an operator hardly ask"
    await stage.write(**term(11, "a"))
    async with proving(stage) as task:
        await stage.after_another_look(**term(12))
        await stage.after_another_look(**term(13))
        await task


async def test_annotations_are_no_life(stage: Stage) -> None:
    await stage.write(**term(10, seconds=0.1))
    document = await stage.server.put(NAME, namespace="ns", spec=term(10, seconds=0.1))
    async with proving(stage) as task:
        await stage.server.until_asked("GET", 2)
        document["metadata"] |= {"resourceVersion": "999", "annotations": {"x": "y"}}
        with pytest.raises(NodeError, match="has not renewed it"):
            await task


async def test_without_a_lease_there_is_no_operator(stage: Stage) -> None:
    with pytest.raises(NodeError, match=f"there is no Lease ns/{NAME}") as caught:
        await stage.lease.prove(CLOCK.now())
    assert caught.value.reason == "OperatorAway"


async def test_one_answer_that_fails_is_not_the_end_and_a_refusal_is(stage: Stage) -> None:
    await stage.write(**term(10))
    async with proving(stage) as task:
        await stage.server.until_asked("GET", 2)
        stage.server.faults.append(Fault("GET", 500, status(500, "InternalError")))
        await stage.after_another_look(**term(11))
        await stage.after_another_look(**term(12))
        await task
    stage.server.faults.append(Fault("GET", 403, status(403, "Forbidden")))
    with pytest.raises(NodeError, match=r"whether an operator lives cannot be read: .*Forbidden") as caught:
        await stage.lease.prove(CLOCK.now())
    assert caught.value.reason == "OrderNotConfirmed"


async def test_an_api_server_that_goes_away_meanwhile_is_not_taken_for_the_operator(stage: Stage) -> None:
    await stage.write(**term(10, seconds=0.1))
    async with proving(stage) as task:
        await stage.server.until_asked("GET", 1)
        stage.server.faults += [Fault("GET", 503, status(503, "ServiceUnavailable")) for _ in range(1000)]
        with pytest.raises(NodeError, match="ServiceUnavailable") as caught:
            await task
    assert caught.value.reason == "OrderNotConfirmed"


@dataclass
class Leader(StillClock):
    """Time that passes only where somebody waits, and a leader that renews every 5 s of it."""

    server: FakeApiServer
    lives: bool = True
    sees: bool = True
    chance: float = 0.5
    seconds: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def uniform(self) -> float:
        return self.chance

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.goes_by(seconds)

    async def goes_by(self, seconds: float) -> None:
        self.seconds += seconds
        if self.lives:
            await put(self.server, term(int(self.seconds // 5), seconds=15), vouched=self.sees)

    def looks(self) -> int:
        return len(self.server.requests)


@pytest.fixture
async def leader() -> AsyncIterator[tuple[Leader, OperatorLease]]:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        leader = Leader(server)
        await leader.goes_by(1)
        yield leader, OperatorLease(api, namespace="ns", name=NAME, poll=2, margin=5, clock=leader)


async def test_one_proof_serves_every_order_from_before_it(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now()
    await clock.goes_by(1)
    await lease.prove(seen)
    took, first = clock.now() - seen, clock.looks()
    assert took <= 13
    for _ in range(29):
        await clock.goes_by(1)
        await lease.prove(seen)
    assert clock.looks() == first + 29, "each looks once, whether somebody leads still"
    assert clock.now() == seen + took + 29


async def test_removals_at_the_same_time_share_the_looks(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now()
    await clock.goes_by(1)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(30):
            tasks.create_task(lease.prove(seen))
    assert clock.now() - seen <= 13
    assert clock.looks() <= 30 + 7


async def test_an_order_that_is_seen_while_another_is_proven_waits_for_renewals_of_its_own(
    leader: tuple[Leader, OperatorLease],
) -> None:
    clock, lease = leader
    await lease.prove(clock.now() - 1)
    seen = clock.now()
    await clock.goes_by(0.1)
    await lease.prove(seen)
    assert clock.now() // 5 - seen // 5 >= 2


async def test_a_proof_ends_with_the_lease(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now() - 1
    await lease.prove(seen)
    clock.lives = False
    await clock.goes_by(14)
    with pytest.raises(NodeError, match="a has not renewed it"):
        await lease.prove(seen)


async def test_who_renews_and_does_not_vouch_is_not_obeyed_and_the_next_order_does_not_wait_for_it(
    leader: tuple[Leader, OperatorLease],
) -> None:
    """Blind, or older than this agent: nothing says that it would take an order back."""
    clock, lease = leader
    clock.sees = False
    seen = clock.now()
    with pytest.raises(NodeError, match="a leads and does not vouch for what it has ordered") as caught:
        await lease.prove(seen)
    assert (caught.value.reason, caught.value.permanent) == ("OrderNotConfirmed", False)
    looks, now = clock.looks(), clock.now()
    with pytest.raises(NodeError, match="does not vouch"):
        await lease.prove(seen)
    assert (clock.looks(), clock.now()) == (looks + 1, now)
    clock.sees = True
    await clock.goes_by(5)
    await lease.prove(seen)


async def test_a_proof_ends_when_its_leader_goes_blind(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now() - 1
    await lease.prove(seen)
    clock.sees = False
    await clock.goes_by(16)
    began = clock.now()
    with pytest.raises(NodeError, match="does not vouch"):
        await lease.prove(seen)
    assert clock.now() - began == pytest.approx(2 * (15 + 5), abs=3)


async def test_a_leader_that_let_go_takes_its_proof_along(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now() - 1
    await lease.prove(seen)
    clock.lives = False
    await put(clock.server, term(500, None, seconds=15))
    with pytest.raises(NodeError, match="nobody holds it"):
        await lease.prove(seen)


async def test_after_a_long_removal_one_more_renewal_is_enough(leader: tuple[Leader, OperatorLease]) -> None:
    clock, lease = leader
    seen = clock.now() - 1
    await lease.prove(seen)
    await clock.goes_by(600)
    again = clock.now()
    await lease.prove(seen)
    assert 0 < clock.now() - again <= 5 + 2


@pytest.mark.parametrize(("chance", "pause"), [(0, 1), (0.5, 2), (0.99, 2.98)])
async def test_nodes_do_not_look_in_step(
    leader: tuple[Leader, OperatorLease], chance: float, pause: float
) -> None:
    clock, lease = leader
    clock.chance = chance
    await lease.prove(clock.now() - 1)
    assert clock.pauses
    assert clock.pauses == pytest.approx([pause] * len(clock.pauses))
