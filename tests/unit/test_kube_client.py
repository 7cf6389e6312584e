from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from imageprepull.kube.access import AccessError, ClusterAccess, TokenFile
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError, ApiUnreachable
from imageprepull.kube.kinds import CONFIGMAPS, NODEPREPULLS, NODES
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with serve() as running:
        yield running


@pytest.fixture
async def api(server: FakeApiServer) -> AsyncIterator[ApiClient]:
    async with ApiClient(server.access(), timeout=2) as client:
        yield client


def test_paths_are_those_of_the_api_conventions() -> None:
    assert NODES.path() == "/api/v1/nodes"
    assert (
        NODEPREPULLS.path(name="n1", subresource="status")
        == "/apis/imageprepull.io/v1alpha1/nodeprepulls/n1/status"
    )
    assert CONFIGMAPS.path("ns", "pace") == "/api/v1/namespaces/ns/configmaps/pace"


@pytest.mark.parametrize("arguments", [("", "pace"), ("ns", "", "status")])
def test_a_path_that_would_address_something_else_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="needs"):
        CONFIGMAPS.path(*arguments)
    with pytest.raises(ValueError, match="cluster-scoped"):
        NODES.path("ns", "n1")


async def test_a_list_joins_its_pages(server: FakeApiServer, api: ApiClient) -> None:
    for number in range(7):
        await server.put(f"n{number}")
    found, version = await api.list(NODES, limit=3)
    assert [o["metadata"]["name"] for o in found] == [f"n{number}" for number in range(7)]
    assert version == str(server.version)
    assert len(server.requests) == 3


async def test_an_expired_page_falls_back_to_one_whole_list(server: FakeApiServer, api: ApiClient) -> None:
    for number in range(4):
        await server.put(f"n{number}")
    server.page_token_expired = True
    found, _ = await api.list(NODES, limit=3)
    assert len(found) == 4
    assert "limit" not in server.requests[-1].query


async def test_a_refusal_carries_status_reason_message_and_retry_after(
    server: FakeApiServer, api: ApiClient
) -> None:
    server.faults.append(Fault("GET", 429, status(429, "TooManyRequests", "slow down"), {"Retry-After": "7"}))
    with pytest.raises(ApiError) as caught:
        await api.get(NODES, "n1")
    error = caught.value
    assert (error.status, error.reason, error.message, error.retry_after) == (
        429,
        "TooManyRequests",
        "slow down",
        7,
    )
    assert error.temporary
    assert str(error) == "GET /api/v1/nodes/n1: 429 TooManyRequests: slow down"


async def test_an_answer_that_is_no_status_document_is_still_an_error(
    server: FakeApiServer, api: ApiClient
) -> None:
    server.faults.append(Fault("GET", 502, "<html>bad gateway</html>"))
    with pytest.raises(ApiError, match="bad gateway") as caught:
        await api.get(NODES, "n1")
    assert caught.value.status == 502
    server.faults.append(Fault("GET", 200, "<html>log in here</html>"))
    with pytest.raises(ApiUnreachable, match="not JSON"):
        await api.get(NODES, "n1")


@pytest.mark.parametrize(
    ("code", "reason", "attribute"),
    [
        (404, "NotFound", "not_found"),
        (409, "Conflict", "conflict"),
        (409, "AlreadyExists", "already_exists"),
        (410, "Expired", "gone"),
    ],
)
async def test_errors_are_told_apart(
    server: FakeApiServer, api: ApiClient, code: int, reason: str, attribute: str
) -> None:
    server.faults.append(Fault("GET", code, status(code, reason)))
    with pytest.raises(ApiError) as caught:
        await api.get(NODES, "n1")
    told = {
        name: getattr(caught.value, name)
        for name in ("not_found", "conflict", "already_exists", "gone", "temporary")
    }
    assert told == {name: name == attribute for name in told}


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with ApiClient(ClusterAccess(f"http://127.0.0.1:{port}"), timeout=2) as api:
            with pytest.raises(ApiUnreachable, match="GET /api/v1/nodes/n1: Unreachable"):
                await api.get(NODES, "n1")


async def test_a_server_that_never_answers_runs_into_the_deadline() -> None:
    opened = asyncio.Event()

    closed = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    listener = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with ApiClient(ClusterAccess(f"http://127.0.0.1:{port}"), timeout=1) as api:
        with pytest.raises(ApiUnreachable, match="Timeout: no answer within 1 s"):
            await api.get(NODES, "n1")
    assert opened.is_set()
    await closed.wait()
    listener.close()
    await listener.wait_closed()


async def test_writes_say_what_kind_of_write_they_are(server: FakeApiServer, api: ApiClient) -> None:
    await api.merge_patch(NODEPREPULLS, "n1", {"status": {"heartbeat": None}}, subresource="status")
    await api.apply(NODEPREPULLS, "n1", {"spec": {}}, field_manager="imageprepull-operator", force=True)
    await api.delete(NODEPREPULLS, "n1", uid="u1")
    patch, apply, delete = server.requests
    assert patch.content_type == "application/merge-patch+json"
    assert patch.path.endswith("/nodeprepulls/n1/status")
    assert apply.content_type == "application/apply-patch+yaml"
    assert dict(apply.query) == {"fieldManager": "imageprepull-operator", "force": "true"}
    assert delete.method == "DELETE"
    assert server.bodies[0] == {"status": {"heartbeat": None}}
    assert server.bodies[2]["preconditions"] == {"uid": "u1"}


async def test_a_watch_line_of_one_and_a_half_megabytes_passes(server: FakeApiServer, api: ApiClient) -> None:
    version = str(server.version)
    blob = "x" * 1_500_000
    await server.put("n1", blob=blob)
    async with aclosing(api.watch(NODES, resource_version=version)) as events:
        kind, document = await anext(events)
    assert kind == "ADDED"
    assert document["blob"] == blob


async def test_a_silent_watch_ends_with_its_reason(server: FakeApiServer, api: ApiClient) -> None:
    server.watch_mode = "silent"
    async with aclosing(api.watch(NODES, resource_version="1", silence=0.05)) as events:
        with pytest.raises(ApiUnreachable, match="WatchSilent"):
            await anext(events)


async def test_a_rotated_token_is_used_by_the_next_request(server: FakeApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with ApiClient(ClusterAccess.from_files(server.url, token)) as api:
        await api.list(NODES)
        token.write_text("second\n")
        await api.list(NODES)
        token.unlink()
        with pytest.raises(ApiUnreachable, match="cannot read the service-account token"):
            await api.list(NODES)
    assert [r.headers["Authorization"] for r in server.requests] == ["Bearer first", "Bearer second"]


async def test_no_redirect_is_followed_with_the_token(server: FakeApiServer) -> None:
    server.faults.append(Fault("GET", 302, "", {"Location": f"{server.url}/elsewhere"}))
    async with ApiClient(server.access("secret")) as api:
        with pytest.raises(ApiError) as caught:
            await api.get(NODES, "n1")
    assert caught.value.status == 302
    assert len(server.requests) == 1


def test_outside_a_pod_the_error_names_the_flag() -> None:
    with pytest.raises(AccessError, match="--server"):
        ClusterAccess.in_cluster(environment={})


def test_an_empty_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(AccessError, match="is empty"):
        TokenFile(tmp_path / "token")()
