"""The agent's loops against a real etcd and kube-apiserver; the node below them is FAKE (no containerd)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from imageprepull.agent.loops import serve_node
from imageprepull.agent.pace import Pace
from imageprepull.agent.settings import AgentSettings
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Timings
from imageprepull.kube.kinds import CRDS, NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import NodePrepull
from imageprepull.telemetry.health import Health
from imageprepull.telemetry.metrics import AgentMetrics
from tests.cluster.bare_api import BareApi
from tests.unit.agent_doubles import FakeNode

pytestmark = pytest.mark.timeout(180)
CRD = Path(__file__).parents[2] / "crds" / "nodeprepulls.yaml"
QUICK = Timings(silence=2, relist_jitter=0.1, backoff_base=0.1, backoff_cap=0.5)


@pytest.fixture(scope="module")
def bare_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    server = BareApi(tmp_path_factory.mktemp("bare-api"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def api(bare_api: BareApi) -> AsyncIterator[ApiClient]:
    document = yaml.safe_load(CRD.read_text())
    async with ApiClient(bare_api.access()) as client:
        await client.apply(CRDS, document["metadata"]["name"], document, field_manager="test", force=True)

        async def served() -> bool:
            try:
                await client.list(NODEPREPULLS)
            except ApiError:
                return False
            return True

        await until(served)
        yield client


async def until(condition: Callable[[], Any]) -> None:
    """Poll: what is asked stands in another process."""
    async with asyncio.timeout(60):
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.1)


async def order(api: ApiClient, *references: str) -> None:
    body = {
        "apiVersion": NODEPREPULLS.api_version,
        "kind": NODEPREPULLS.kind,
        "metadata": {"name": "n1"},
        "spec": {"images": [{"reference": r, "digest": "sha256:" + "a" * 64} for r in references]},
    }
    await api.apply(NODEPREPULLS, "n1", body, field_manager="imageprepull-operator", force=True)


async def states(api: ApiClient) -> dict[str, str]:
    """What is reported of the present generation. Another life of the object may get a report on the one before."""
    found = decode(NodePrepull, await api.get(NODEPREPULLS, "n1"))
    if found.status.observed_generation != found.metadata.generation:
        return {}
    return {entry.reference: entry.state for entry in found.status.images}


@asynccontextmanager
async def agent(bare_api: BareApi, node: FakeNode) -> AsyncIterator[Health]:
    settings = AgentSettings(
        access=bare_api.access(),
        node_name="n1",
        namespace="default",
        pace=Pace(report_interval=0.2),
        watch=QUICK,
    )
    metrics = AgentMetrics()
    health = Health(metrics.registry)

    async def sweep(wanted: Callable[[], Collection[str]] | None) -> None:
        # What is wanted may be nothing: the agent may ask before the object is there.
        if wanted is not None:
            wanted()

    async def follow(*_: Callable[..., None]) -> None:
        await asyncio.Event().wait()

    async with ApiClient(settings.access, timeout=1) as client:
        task = asyncio.create_task(
            serve_node(settings, node, client, health=health, metrics=metrics, sweep=sweep, follow=follow)
        )
        try:
            yield health
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()


def problems(health: Health) -> list[str]:
    return [problem for check in health.ready.values() if (problem := check()) is not None]


async def test_spec_in_status_out_and_an_outage_in_between(bare_api: BareApi, api: ApiClient) -> None:
    async def shows(**expected: str) -> None:
        async def does() -> bool:
            return await states(api) == expected

        await until(does)

    node = FakeNode()
    async with agent(bare_api, node) as health:
        await order(api, "a")
        await shows(a="Pulling")
        api_server = bare_api.children[-1]
        try:
            api_server.send(signal.SIGSTOP)
            node.succeed("a")
            await until(lambda: bool(problems(health)))
            assert all(check() is None for check in health.live.values())
        finally:
            api_server.send(signal.SIGCONT)
        await shows(a="Ready")
        await until(lambda: not problems(health))
        await order(api, "a", "b")
        await shows(a="Ready", b="Pulling")
        await api.delete(NODEPREPULLS, "n1")
        node.succeed("b")
        await order(api, "a", "b")
        await shows(a="Ready", b="Ready")
        assert not [call for call in node.calls if call.startswith(("unpin", "remove", "cancelled"))]
