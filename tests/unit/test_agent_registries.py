"""What registries say, from their answers to the node's status, and the operator's orders back to the requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from aiohttp import web

from imageprepull.agent.backoff import Failure, Pace, after_failure
from imageprepull.agent.containerd_node import ContainerdNode
from imageprepull.agent.node import Pulled
from imageprepull.agent.registries import hold_times, registry_statuses
from imageprepull.agent.status import Report, build_status, patch_of, same_news
from imageprepull.oci.descriptor import OCI_MANIFEST, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.progress import ImageProgress
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.rate_limits import RateLimit
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import Agent, DesiredImage, RegistryHold, RegistryStatus
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.registry_server import FixedHosts
from tests.testbed.registry_server import serve as serve_http
from tests.unit.agent_doubles import FakeNode
from tests.unit.fake_api_server import serve
from tests.unit.test_agent_loops import Stage, running, states

BODY = b"{}"
DOCUMENT = Descriptor(OCI_MANIFEST, sha256_digest(BODY), len(BODY))
NOW = 1_800_000_000.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_line_says_what_is_waited_for_before_what_is_left() -> None:
    lines = registry_statuses(
        {
            "hub": RateLimit(100, 0, 21600),
            "busy": RateLimit(until=NOW + 30.2),
            "over": RateLimit(remaining=7, until=NOW - 1),
            "good": RateLimit(5000, 4999),
            "curt": RateLimit(refused=True),
        },
        {"held": NOW + 60, "busy": NOW + 90, "hub": NOW - 5},
        NOW,
    )
    assert lines == [
        RegistryStatus(host="busy", state="Throttled", until=stamp(NOW + 31)),
        RegistryStatus(host="held", state="Held", until=stamp(NOW + 60)),
        RegistryStatus(host="hub", state="Exhausted", remaining=0, window=21600),
        RegistryStatus(host="over", state="Open", remaining=7),
        RegistryStatus(host="good", state="Open", remaining=4999),
        RegistryStatus(host="curt", state="Throttled"),
    ]


async def test_a_refusal_without_a_pause_shows_until_the_host_answers_again() -> None:
    async with FaultyRegistry() as registry, client_of(registry) as client:
        registry.manifests[DOCUMENT.digest] = (OCI_MANIFEST, BODY)
        registry.faults[DOCUMENT.digest] = [Fault(status=429)]
        reference = Reference.parse(f"{registry.address}/a/b:1")
        with pytest.raises(RegistryError):
            await client.fetch_document(reference, DOCUMENT)
        (line,) = registry_statuses(client.rate_limits, client.holds, time.time())
        assert (line.host, line.state, line.until) == (registry.address, "Throttled", None)
        assert await client.fetch_document(reference, DOCUMENT) == BODY
        (line,) = registry_statuses(client.rate_limits, client.holds, time.time())
        assert line.state == "Open"


def test_the_lines_are_what_the_schema_takes() -> None:
    lines = registry_statuses(
        {"hub": RateLimit(100, 0, 21600), "busy": RateLimit(until=NOW + 5)}, {"h" * 300: NOW + 9}, NOW
    )
    crd = yaml.safe_load((Path(__file__).parents[2] / "crds/nodeprepulls.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    status: Any = patch_of(build_status(Report(1, Agent(), None, [], lines), stamp(NOW)))["status"]
    jsonschema.validate({"registries": status["registries"]}, schema)
    assert len(status["registries"]) == 3


def test_lines_are_bounded_and_those_that_are_waited_for_stay() -> None:
    limits = {f"host{number}": RateLimit(remaining=number) for number in range(bounds.REGISTRIES)}
    lines = registry_statuses(limits, {"z" * 300: NOW + 5}, NOW)
    assert len(lines) == bounds.REGISTRIES
    assert lines[0].host == "z" * bounds.HOST
    many = Report(1, Agent(), None, [], lines)
    assert len(build_status(many, stamp(NOW)).registries) == bounds.REGISTRIES
    assert len(build_status(many, stamp(NOW), soft=1000).registries) == 8


def test_each_request_less_is_no_news_and_the_last_one_is() -> None:
    def status(remaining: int) -> Any:
        lines = registry_statuses({"hub": RateLimit(100, remaining, 21600)}, {}, NOW)
        return build_status(Report(1, Agent(), None, [], lines), stamp(NOW))

    assert same_news(status(50), status(49))
    assert not same_news(status(1), status(0))


def test_orders_are_times_of_any_zone() -> None:
    orders = [
        RegistryHold(host="a", not_before="2027-01-15T08:00:00Z"),
        RegistryHold(host="b", not_before="2027-01-15T09:00:00+01:00"),
        RegistryHold(host="c", not_before="soon"),
    ]
    assert hold_times(orders) == {"a": NOW, "b": NOW}


def test_what_was_held_back_costs_no_attempt_and_ends_after_the_hold() -> None:
    state = after_failure(None, Failure("Stalled", ""), limit=2, pace=Pace(), uniform=0.5)
    for _ in range(5):
        held = Failure("RegistryHeld", "not asked now", retry_after=100)
        state = after_failure(state, held, limit=2, pace=Pace(), uniform=0.5)
        assert (state.attempts, state.final, state.reason) == (1, False, "RegistryHeld")
        assert 100 <= state.delay <= 110, "spread, for all nodes wait for the same moment"


def test_a_pause_that_all_nodes_are_told_ends_at_different_times() -> None:
    told = Failure("Throttled", "", retry_after=100)
    delays = {after_failure(None, told, limit=8, pace=Pace(), uniform=chance).delay for chance in (0, 0.5)}
    assert delays == {100, 105}


async def test_a_held_host_gets_no_request_until_then() -> None:
    async with FaultyRegistry() as registry, client_of(registry) as client:
        registry.manifests[DOCUMENT.digest] = (OCI_MANIFEST, BODY)
        reference = Reference.parse(f"{registry.address}/a/b:1")
        client.hold({registry.address: time.time() + 600, "other": time.time() + 5, "old": time.time() - 5})
        assert client.holds.keys() == {registry.address, "other"}
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(reference, DOCUMENT)
        assert (caught.value.reason, caught.value.retryable) == ("RegistryHeld", True)
        assert 590 < (caught.value.retry_after or 0) <= 600
        assert registry.requests == []
        client.hold({})
        assert await client.fetch_document(reference, DOCUMENT) == BODY


async def test_a_held_mirror_is_passed_over_and_not_blamed() -> None:
    async with (
        serve_http(lambda request: web.Response(body=BODY)) as mirror,
        serve_http(lambda request: web.Response(body=BODY)) as upstream,
        RegistryClient(FixedHosts(mirror.host(is_proxy=True), upstream.host()), proxies=Proxies()) as client,
    ):
        reference = Reference.parse("registry.example/a/b:1")
        client.hold({mirror.address: time.time() + 600})
        assert await client.fetch_document(reference, DOCUMENT) == BODY
        assert (len(mirror.requests), len(upstream.requests)) == (0, 1)
        client.hold({})
        assert await client.fetch_document(reference, DOCUMENT) == BODY
        assert (len(mirror.requests), len(upstream.requests)) == (1, 1)


class RegistryNode(FakeNode):
    """A FAKE runtime before a real registry client: a pull is one document."""

    def __init__(self, client: RegistryClient) -> None:
        super().__init__()
        nothing = cast("Any", None)
        self.real = ContainerdNode(nothing, nothing, client, nothing, nothing, nothing)

    async def pull(self, image: DesiredImage, progress: ImageProgress) -> Pulled:
        await self.real._do(image, lambda reference: self.real.registry.fetch_document(reference, DOCUMENT))
        self.holds.add(image.reference)
        return Pulled(pinned=False)

    def hold(self, registries: Any) -> None:
        self.real.hold(registries)

    def registries(self) -> list[RegistryStatus]:
        return self.real.registries()


@asynccontextmanager
async def client_of(registry: FaultyRegistry) -> AsyncIterator[RegistryClient]:
    host = RegistryHost(f"http://{registry.address}/v2")
    async with RegistryClient(FixedHosts(host), attempts=1, proxies=Proxies()) as client:
        yield client


async def test_a_429_and_its_pause_show_in_the_status_and_the_image_waits_for_it() -> None:
    async with serve() as server, FaultyRegistry() as registry, client_of(registry) as client:
        registry.faults[DOCUMENT.digest] = [Fault(status=429, headers={"Retry-After": "600"})]
        stage = Stage(server)
        stage.node = RegistryNode(client)
        reference = f"{registry.address}/a/b:1"
        await stage.want(reference)
        began = datetime.now(UTC)
        async with running(stage):
            shown = await stage.until_status(lambda s: s["images"][0].get("reason") == "Throttled")
        (line,) = shown["registries"]
        assert (line["host"], line["state"]) == (registry.address, "Throttled")
        pause = timedelta(seconds=600)
        until = datetime.fromisoformat(line["until"])
        assert (
            began + pause - timedelta(seconds=1) <= until <= datetime.now(UTC) + pause + timedelta(seconds=1)
        )
        (image,) = shown["images"]
        assert (image["state"], image["attempts"]) == ("Waiting", 1)
        assert datetime.fromisoformat(image["nextAttempt"]) >= began + pause - timedelta(seconds=1)
        assert len(registry.requests) == 1


async def test_the_operators_order_is_obeyed_shown_and_lifted() -> None:
    async with serve() as server, FaultyRegistry() as registry, client_of(registry) as client:
        registry.manifests[DOCUMENT.digest] = (OCI_MANIFEST, BODY)
        stage = Stage(server)
        stage.node = RegistryNode(client)
        reference = f"{registry.address}/a/b:1"

        async def order(generation: int, seconds: float) -> None:
            images = [
                {"reference": reference, "digest": DOCUMENT.digest, "retry": {"nonce": str(generation)}}
            ]
            holds = [{"host": registry.address, "notBefore": stamp(time.time() + seconds)}]
            document = await server.put("n1", spec={"images": images, "registries": holds})
            document["metadata"]["generation"] = generation

        await order(1, 600)
        async with running(stage):
            shown = await stage.until_status(lambda s: s["images"][0].get("reason") == "RegistryHeld")
            assert (shown["registries"][0]["host"], shown["registries"][0]["state"]) == (
                registry.address,
                "Held",
            )
            (image,) = shown["images"]
            assert (image["state"], image.get("attempts", 0)) == ("Waiting", 0)
            assert image["nextAttempt"] >= shown["registries"][0]["until"]
            assert registry.requests == []
            await order(2, -5)
            await stage.until_status(lambda s: states(s) == {reference: "Ready"})
        assert len(registry.requests) == 1
