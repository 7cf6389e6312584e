"""How registries say that it is enough, row by row (A5), against the fault-injecting registry."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import tests.testbed.faulty_registry_limits  # noqa: F401 - registers the switches
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.rate_limits import RateLimit, parse
from tests.testbed.faulty_registry_quirks import QuirkyRegistry

PLAIN = "text/plain"


async def failure(world: QuirkyRegistry) -> tuple[RegistryError, RateLimit | None]:
    async with world.client() as client:
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, world.manifest)
        return caught.value, client.rate_limits.get(world.registry.address)


HUB = {
    "ratelimit-limit": "100;w=21600",
    "ratelimit-remaining": "0;w=21600",
    "docker-ratelimit-source": "192.0.2.7",
}


async def test_row_70_limits_are_read_from_every_answer_a_good_one_too() -> None:
    async with QuirkyRegistry(70, HUB) as world, world.client() as client:
        assert await client.resolve(world.reference) == world.manifest
        assert client.rate_limits[world.registry.address] == RateLimit(100, 0, 21600, None)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ratelimit-limit": "100;w=21600"}, RateLimit(100, None, 21600)),
        ({"ratelimit-remaining": "76;w=21600"}, RateLimit(None, 76, 21600)),
        ({"x-ratelimit-limit": "5000", "x-ratelimit-remaining": "4999"}, RateLimit(5000, 4999)),
        ({"ratelimit-limit": "plenty"}, None),
        ({"ratelimit-limit": "-1"}, None),
        ({"ratelimit-limit": "9" * 13}, RateLimit(int("9" * 12))),
        ({}, None),
    ],
)
def test_row_70_what_cannot_be_read_is_left_out(headers: dict[str, str], expected: RateLimit | None) -> None:
    assert parse(headers) == expected


async def test_row_71_a_refusal_without_a_pause_is_not_followed_at_once() -> None:
    async with QuirkyRegistry(71, (429, {}, "toomanyrequests: slow down", PLAIN)) as world:
        world.notes["refusals"] = 1
        started = time.monotonic()
        async with world.client(attempts=2, throttle_backoff=0.4, backoff=0) as client:
            await client.fetch_document(world.reference, world.manifest)
        assert 0.2 <= time.monotonic() - started < 5
        assert len(world.registry.asked) == 2


SOON = format_datetime(datetime.now(UTC) + timedelta(seconds=3000), usegmt=True)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("30", 30, 30), (SOON, 300, 3000), ("1731000000000", 3600, 3600), ("7200", 3600, 3600), ("0", 0, 0)],
)
async def test_row_72_a_pause_has_two_forms_and_a_ceiling(header: str, least: float, most: float) -> None:
    async with QuirkyRegistry(72, (429, {"Retry-After": header}, "", PLAIN)) as world:
        error, limit = await failure(world)
        assert (error.kind, error.reason) == (ErrorKind.THROTTLED, "Throttled")
        assert error.retry_after is not None
        assert least <= error.retry_after <= most
        assert limit is not None
        assert (
            limit.until is None
            if most == 0
            else limit.until == pytest.approx(time.time() + error.retry_after, abs=5)
        )


async def test_row_72_a_long_pause_is_the_callers_to_wait_for() -> None:
    async with QuirkyRegistry(72, (429, {"Retry-After": "3000"}, "", PLAIN)) as world:
        started = time.monotonic()
        async with world.client(attempts=5) as client:
            with pytest.raises(RegistryError):
                await client.fetch_document(world.reference, world.manifest)
        assert time.monotonic() - started < 5
        assert len(world.registry.asked) == 1


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("denied: retry-after: 880.092µs, allowed: 44000/minute", 1),
        ("retry-after: 12.5s", 12.5),
        ("Retry after 3m", 180),
        ("retry-after: 90h", 3600),
        ("no pause here", None),
    ],
)
async def test_row_73_a_pause_may_stand_in_the_text_only(text: str, pause: float | None) -> None:
    async with QuirkyRegistry(73, (429, {}, text, PLAIN)) as world:
        assert (await failure(world))[0].retry_after == pause


@pytest.mark.parametrize(
    ("status", "text", "content_type"),
    [
        (503, '{"errors":[{"code":"TOOMANYREQUESTS","message":"x"}]}', "application/json"),
        (503, "<Error><Code>SlowDown</Code><Message>Please reduce</Message></Error>", "application/xml"),
        (403, "Rate exceeded", PLAIN),
        (429, "<html><body><h1>Too many</h1></body></html>", "text/html"),
        (429, "", PLAIN),
    ],
)
async def test_row_74_throttling_has_many_faces(status: int, text: str, content_type: str) -> None:
    async with QuirkyRegistry(74, (status, {}, text, content_type)) as world:
        error, limit = await failure(world)
        assert (error.kind, error.reason) == (ErrorKind.THROTTLED, "Throttled")
        assert limit is not None, "it is noted for the host, whatever face it had"


async def test_row_75_a_mirrors_limit_is_the_mirrors() -> None:
    refusal = (429, {"Retry-After": "60"}, "", PLAIN)
    async with QuirkyRegistry(75, refusal) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts) as client:
            await client.fetch_document(world.reference, world.manifest)
            assert client.rate_limits.keys() == {mirror.registry.address}
            until = client.rate_limits[mirror.registry.address].until
            assert until == pytest.approx(time.time() + 60, abs=5)


async def test_row_76_a_tag_costs_a_head_and_no_get() -> None:
    async with QuirkyRegistry(76) as world, world.client() as client:
        for _ in range(3):
            await client.resolve(world.reference)
        assert (world.seen["HEAD"], world.seen["GET"]) == (3, 0)


async def test_a_host_that_answers_again_is_not_held_back_any_longer() -> None:
    async with QuirkyRegistry(72, (429, {"Retry-After": "20"}, "", PLAIN)) as world, world.client() as client:
        world.notes["refusals"] = 1
        with pytest.raises(RegistryError):
            await client.fetch_document(world.reference, world.manifest)
        await client.fetch_document(world.reference, world.manifest)
        assert client.rate_limits[world.registry.address].until is None
