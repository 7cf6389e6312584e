"""Whether an operator lives, as its Lease tells somebody who trusts no clock but his own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from imageprepull.agent.node import NodeError
from imageprepull.agent.operator_lease import OperatorLease, Term, renewals, term_of
from imageprepull.kube.client import ApiClient
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status

NAME = "imageprepull-operator"
LONG = 60.0


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (Term("a", "1", "10"), 1),
        (Term("a", "1", "11"), 2),
        (Term("", "1", "11"), 0),
        (Term("b", "2", "11"), 0),
        (Term("a", "2", "11"), 0),
    ],
    ids=["nothing", "renewed", "released", "taken by another", "taken anew by the same"],
)
def test_only_a_renewal_of_the_same_term_counts(now: Term, expected: int) -> None:
    assert renewals(Term("a", "1", "10"), now, 1) == expected


def test_a_lease_is_read_as_it_is_and_an_empty_one_is_nobodys() -> None:
    spec = {"holderIdentity": "a", "acquireTime": "1", "renewTime": "2", "leaseDurationSeconds": 7}
    assert term_of({"spec": spec}) == Term("a", "1", "2", 7)
    assert term_of({}) == term_of({"spec": {"holderIdentity": None}}) == Term()


@dataclass
class Stage:
    server: FakeApiServer
    lease: OperatorLease
    looks: int = 0

    async def write(self, **spec: Any) -> None:
        await self.server.put(NAME, namespace="ns", spec=spec)

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
    task = asyncio.create_task(stage.lease.prove())
    try:
        async with asyncio.timeout(10):
            yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        yield Stage(server, OperatorLease(api, namespace="ns", name=NAME, poll=0.01, margin=0))


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
        await stage.lease.prove()
    assert (caught.value.reason, caught.value.permanent) == ("OperatorAway", False)
    assert f"Lease ns/{NAME}" in str(caught.value)
    asked = len(stage.server.requests)
    with pytest.raises(NodeError, match=message):
        await stage.lease.prove()
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
        await stage.lease.prove()
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
        await stage.lease.prove()
    assert caught.value.reason == "OrderNotConfirmed"


async def test_an_api_server_that_goes_away_meanwhile_is_not_taken_for_the_operator(stage: Stage) -> None:
    await stage.write(**term(10, seconds=0.1))
    async with proving(stage) as task:
        await stage.server.until_asked("GET", 1)
        stage.server.faults += [Fault("GET", 503, status(503, "ServiceUnavailable")) for _ in range(1000)]
        with pytest.raises(NodeError, match="ServiceUnavailable") as caught:
            await task
    assert caught.value.reason == "OrderNotConfirmed"
