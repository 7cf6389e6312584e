"""The API client, the informer and the agent's status against a real etcd and kube-apiserver."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held, Pulled
from imageprepull.agent.status import Report, build_status, patch_of
from imageprepull.kube.cache import Change
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Informer, Timings
from imageprepull.kube.kinds import CONFIGMAPS, CRDS, NODEPREPULLS, Kind
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Agent, DesiredImage, Disk, LayerState, NodePrepull
from tests.cluster.bare_api import BareApi

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
    async with ApiClient(bare_api.access(), timeout=10, user_agent="imageprepull-test/0") as client:
        yield client


@pytest.fixture
async def crd(api: ApiClient) -> None:
    document = yaml.safe_load(CRD.read_text())
    await api.apply(CRDS, document["metadata"]["name"], document, field_manager="test", force=True)
    async with asyncio.timeout(30):
        while True:
            found = await api.get(CRDS, document["metadata"]["name"])
            conditions = found.get("status", {}).get("conditions") or []
            if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                return
            await asyncio.sleep(0.1)


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def node_prepull(name: str) -> dict[str, Any]:
    return {
        "apiVersion": NODEPREPULLS.api_version,
        "kind": NODEPREPULLS.kind,
        "metadata": {"name": name},
        "spec": {"images": [{"reference": "a:1", "digest": "sha256:" + "a" * 64}]},
    }


@asynccontextmanager
async def following(api: ApiClient, kind: Kind, **arguments: Any) -> AsyncIterator[Follower]:
    follower = Follower()
    informer = Informer(api, kind, on_change=follower.take, timings=QUICK, **arguments)
    follower.informer = informer
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(60):
            await informer.synced.wait()
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])


class Follower:
    informer: Informer

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bool]] = []
        self.woken = asyncio.Event()

    def take(self, change: Change) -> None:
        self.seen.append((change.type, change.object["metadata"]["name"], change.witnessed))
        self.woken.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.woken.clear()
                await self.woken.wait()


async def test_objects_are_created_paged_patched_and_deleted_by_uid(api: ApiClient) -> None:
    for number in range(5):
        await api.create(CONFIGMAPS, config_map(f"page-{number}", key="old"), namespace="default")
    found, version = await api.list(CONFIGMAPS, namespace="default", limit=2)
    assert {f"page-{n}" for n in range(5)} <= {o["metadata"]["name"] for o in found}
    assert int(version) > 0
    with pytest.raises(ApiError) as caught:
        await api.create(CONFIGMAPS, config_map("page-0"), namespace="default")
    assert caught.value.already_exists
    patched = await api.merge_patch(
        CONFIGMAPS, "page-0", {"data": {"key": None, "new": "1"}}, namespace="default"
    )
    assert patched["data"] == {"new": "1"}
    managers = [entry["manager"] for entry in patched["metadata"]["managedFields"]]
    assert "imageprepull-test" in managers
    with pytest.raises(ApiError) as caught:
        await api.delete(CONFIGMAPS, "page-0", namespace="default", uid="another")
    assert caught.value.conflict
    await api.delete(CONFIGMAPS, "page-0", namespace="default", uid=patched["metadata"]["uid"])
    with pytest.raises(ApiError) as caught:
        await api.get(CONFIGMAPS, "page-0", "default")
    assert caught.value.not_found


async def test_a_stale_resource_version_conflicts(api: ApiClient) -> None:
    first = await api.create(CONFIGMAPS, config_map("stale"), namespace="default")
    await api.merge_patch(CONFIGMAPS, "stale", {"data": {"a": "1"}}, namespace="default")
    with pytest.raises(ApiError) as caught:
        await api.replace(CONFIGMAPS, "stale", first, namespace="default")
    assert caught.value.conflict


@pytest.mark.usefixtures("crd")
async def test_a_version_from_before_history_is_gone(api: ApiClient) -> None:
    """The server's history of a kind begins when its CRD is installed."""
    await api.list(NODEPREPULLS)
    async with asyncio.timeout(30):
        while (error := await refusal(api)).temporary:  # noqa: ASYNC110 - the server tells nobody.
            # The server's cache of the kind is not there yet.
            await asyncio.sleep(error.retry_after or 0.1)
    assert error.gone


async def refusal(api: ApiClient) -> ApiError:
    """Why a watch from the beginning of all history is not granted."""
    async with aclosing(api.watch(NODEPREPULLS, resource_version="1", silence=5)) as events:
        with pytest.raises(ApiError) as caught:
            await anext(events)
    return caught.value


async def test_a_wrong_token_is_told_as_such(bare_api: BareApi, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    access = type(bare_api.access()).from_files(bare_api.server, tmp_path / "token", bare_api.ca_file)
    async with ApiClient(access) as client:
        with pytest.raises(ApiError) as caught:
            await client.list(CONFIGMAPS)
    assert caught.value.status == 401


async def test_only_the_named_object_is_followed_and_a_rebirth_is_two_changes(api: ApiClient) -> None:
    async with following(
        api, CONFIGMAPS, namespace="default", field_selector="metadata.name=mine"
    ) as follower:
        await api.create(CONFIGMAPS, config_map("other"), namespace="default")
        await api.create(CONFIGMAPS, config_map("mine"), namespace="default")
        await api.delete(CONFIGMAPS, "mine", namespace="default")
        await api.create(CONFIGMAPS, config_map("mine"), namespace="default")
        await follower.until(lambda: len(follower.seen) == 3)
        assert follower.seen == [("added", "mine", True), ("deleted", "mine", True), ("added", "mine", True)]


# asyncio of Python 3.11 drops the socket of a TLS handshake that is given up; only a frozen server gets there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_frozen_api_server_is_waited_out_without_a_gap(bare_api: BareApi) -> None:
    """SIGSTOP: connections stay open and silent, as behind a failed load balancer."""
    api_server = bare_api.children[-1]
    async with (
        ApiClient(bare_api.access(), timeout=1) as impatient,
        following(impatient, CONFIGMAPS, namespace="default") as follower,
    ):
        try:
            api_server.send(signal.SIGSTOP)
            async with asyncio.timeout(20):
                while not follower.informer.sight.problem:  # noqa: ASYNC110 - the informer tells nobody of its problems.
                    await asyncio.sleep(0.05)
        finally:
            api_server.send(signal.SIGCONT)
        async with ApiClient(bare_api.access()) as patient:
            await patient.create(CONFIGMAPS, config_map("after-the-freeze"), namespace="default")
        await follower.until(lambda: ("added", "after-the-freeze", True) in follower.seen)
        assert follower.informer.sight.problem == ""
    gc.collect()  # here, where the warning is expected, not in whichever test comes next


def busy_view(number: int, layers: int) -> ImageView:
    reference = f"registry.example/{'x' * 80}/{number}:v1"
    view = ImageView(DesiredImage(reference=reference, digest="sha256:" + "a" * 64), running=number % 2 == 0)
    view.progress = ImageProgress(reference)
    view.progress.layers = [
        LayerProgress("sha256:" + "f" * 64, 10**9, "", "", LayerState.DOWNLOADING, 10**6)
        for _ in range(layers)
    ]
    if number % 2:
        view.held = Held(True, pinned=True, layers=layers)
        view.pulled = Pulled(True, {"total": 1.5}, {"registry.example:443": 10**9})
    return view


@pytest.mark.usefixtures("crd")
async def test_the_api_server_takes_the_agents_largest_status_whole(api: ApiClient) -> None:
    await api.apply(NODEPREPULLS, "n1", node_prepull("n1"), field_manager="imageprepull-operator", force=True)
    views = [busy_view(number, 128) for number in range(256)]
    status = build_status(
        Report(1, Agent(version="0.1.0"), Disk(capacity=10, available=5), views), "2026-01-01T00:00:00Z"
    )
    await api.merge_patch(NODEPREPULLS, "n1", patch_of(status), subresource="status")
    assert decode(NodePrepull, await api.get(NODEPREPULLS, "n1")).status == status
    small = build_status(Report(2, Agent(), None, [busy_view(0, 2)]), "2026-01-01T00:01:00Z")
    await api.merge_patch(NODEPREPULLS, "n1", patch_of(small), subresource="status")
    read = decode(NodePrepull, await api.get(NODEPREPULLS, "n1"))
    assert read.status == small
    assert [image.reference for image in read.spec.images] == ["a:1"]


@pytest.mark.usefixtures("crd")
async def test_a_status_write_does_not_change_the_generation(api: ApiClient) -> None:
    await api.apply(NODEPREPULLS, "n2", node_prepull("n2"), field_manager="imageprepull-operator", force=True)
    before = (await api.get(NODEPREPULLS, "n2"))["metadata"]["generation"]
    status = build_status(Report(1, Agent(), None, []), "2026-01-01T00:00:00Z")
    after = await api.merge_patch(NODEPREPULLS, "n2", patch_of(status), subresource="status")
    assert after["metadata"]["generation"] == before
