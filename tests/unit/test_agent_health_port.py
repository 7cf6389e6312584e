from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from imageprepull.agent.health_port import served
from imageprepull.agent.main import Waits
from imageprepull.telemetry.health import Health

HOST = "127.0.0.1"


async def test_who_finds_the_port_taken_waits_until_it_is_free_and_says_so_once() -> None:
    tries = asyncio.Semaphore(0)
    waits = Waits()

    def note(why: str) -> None:
        waits.note_port(why)
        tries.release()

    async def second(port: int) -> None:
        health = Health(CollectorRegistry())
        async with served(health, port, HOST, retry=0.01, on_wait=note) as bound:
            assert bound == port

    with capture_logs() as logs:
        async with Health(CollectorRegistry()).serve(0, HOST) as port:
            waiting = asyncio.create_task(second(port))
            async with asyncio.timeout(30):
                for _ in range(3):
                    await tries.acquire()
            assert not waiting.done()
            assert f"port {port} is taken" in waits.port
        async with asyncio.timeout(30):
            await waiting
    assert waits.port == ""
    assert [line["event"] for line in logs] == ["waiting for the health port"]


async def test_a_port_that_cannot_be_had_is_no_reason_to_wait() -> None:
    """An address that is not this machine's."""
    with pytest.raises(OSError, match="address"):
        async with served(Health(CollectorRegistry()), 0, "203.0.113.1", retry=60, on_wait=pytest.fail):
            pass
