"""The Lease against a FAKE API that keeps one object and can hang; the real one is in tests/cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imageprepull.controller import lease as lease_module
from imageprepull.controller.lease import LOST_EXIT_CODE, Lease, LeaseLost, start_watchdog
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.resources.vouching import VOUCHED, vouches
from tests.unit.virtual_time import run_virtually

SECONDS = 6.0
Virtually = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Runs a story whose time, the Lease's too, is the virtual loop's: a machine that stands still changes nothing."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(lease_module, "time", clock)
    return run_virtually


class FakeLeases:
    """One Lease with resourceVersions. `hanging` requests never come back."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.hanging = False
        self.refusing = 0

    async def _answer(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()

    async def get(self, kind: Any, name: str, namespace: str) -> dict[str, Any]:
        await self._answer()
        if self.lease is None:
            raise ApiError(404, "NotFound", name)
        return {**self.lease, "metadata": dict(self.lease["metadata"])}

    async def create(self, kind: Any, body: dict[str, Any], *, namespace: str) -> dict[str, Any]:
        await self._answer()
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "lease")
        self.lease = {"metadata": {**body["metadata"], "resourceVersion": "1"}, "spec": body["spec"]}
        return self.lease

    async def merge_patch(
        self, kind: Any, name: str, body: dict[str, Any], *, namespace: str
    ) -> dict[str, Any]:
        await self._answer()
        assert self.lease is not None
        version = self.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "stale")
        if self.refusing:
            self.refusing -= 1
            raise ApiError(500, "InternalError", "by order of the test")
        spec = {**self.lease["spec"], **body["spec"]}
        annotations = self.lease["metadata"].get("annotations", {}) | body["metadata"].get("annotations", {})
        metadata = {"name": name, "resourceVersion": str(int(version) + 1), "annotations": annotations}
        self.lease = {"metadata": metadata, "spec": spec}
        return self.lease

    def of(self, identity: str, seconds: float = SECONDS) -> Lease:
        client = cast("ApiClient", self)
        return Lease(client, namespace="default", name="op", identity=identity, seconds=seconds)


def test_the_first_leads_and_the_second_waits(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        first, second = api.of("first"), api.of("second")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.acquire(), SECONDS * 2)
        assert first.leading
        assert not second.leading
        keeping.cancel()

    virtually(story())


def test_a_silent_leader_is_replaced_after_its_time_and_not_before(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        first, second = api.of("first"), api.of("second")
        await first.acquire()
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(second.acquire(), SECONDS * 4)
        assert asyncio.get_running_loop().time() - began >= SECONDS
        assert api.lease is not None
        assert (api.lease["spec"]["holderIdentity"], api.lease["spec"]["leaseTransitions"]) == ("second", 1)

    virtually(story())


def test_a_replaced_leader_ends(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        first, second = api.of("first"), api.of("second")
        await first.acquire()
        await asyncio.wait_for(second.acquire(), SECONDS * 4)
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(first.keep(), SECONDS)
        assert not first.leading

    virtually(story())


def test_a_leader_whose_requests_hang_ends_before_another_may_lead(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        lease = api.of("first")
        await lease.acquire()
        began = asyncio.get_running_loop().time()
        api.hanging = True
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(lease.keep(), SECONDS * 3)
        assert asyncio.get_running_loop().time() - began < SECONDS

    virtually(story())


def test_a_stopped_leader_hands_over_at_once(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        first, second = api.of("first"), api.of("second")
        await first.acquire()
        await first.release()
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(second.acquire(), SECONDS)
        assert asyncio.get_running_loop().time() - began < SECONDS / 2

    virtually(story())


def test_a_restarted_replica_takes_its_own_lease_back(virtually: Virtually) -> None:
    async def story() -> None:
        api = FakeLeases()
        await api.of("pod").acquire()
        await asyncio.wait_for(api.of("pod").acquire(), SECONDS / 2)

    virtually(story())


async def test_the_watchdog_ends_a_process_whose_loop_hangs() -> None:
    lease = FakeLeases().of("first", seconds=0.6)
    await lease.acquire()
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    stop = start_watchdog(lease, end)
    # Not awaited: the event loop hangs, as it would in a bug.
    assert ended.wait(60)
    stop.set()
    assert codes == [LOST_EXIT_CODE]


class Voucher:
    """In the place of vouching.py: says what it is told to say."""

    def __init__(self) -> None:
        self.word = True
        self.turns = 0

    def vouches(self) -> bool:
        return self.word

    def renewed(self) -> None:
        self.turns += 1


def test_a_renewal_vouches_when_it_may_and_an_old_word_does_not_count(virtually: Virtually) -> None:
    async def story() -> None:
        api, voucher = FakeLeases(), Voucher()
        lease = api.of("first")
        lease.voucher = voucher
        await lease.acquire()
        assert api.lease is not None
        assert not vouches(api.lease), "who begins to lead has read nothing"
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(SECONDS / 2)
        assert vouches(api.lease)
        assert voucher.turns == 1
        voucher.word = False
        await asyncio.sleep(SECONDS / 2)
        assert VOUCHED in api.lease["metadata"]["annotations"]
        assert not vouches(api.lease)
        keeping.cancel()

    virtually(story())


def test_a_renewal_without_an_answer_uses_its_word_up(virtually: Virtually) -> None:
    """It may have come through: the next one needs another look."""

    async def story() -> None:
        api, voucher = FakeLeases(), Voucher()
        lease = api.of("first")
        lease.voucher = voucher
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        api.refusing = 1
        await asyncio.sleep(SECONDS * 2 / 3)
        assert voucher.turns == 2
        keeping.cancel()

    virtually(story())
