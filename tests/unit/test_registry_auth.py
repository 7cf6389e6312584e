"""Tokens and passwords: got as the registry asks, shared, renewed, and never told to anybody else."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web

from imageprepull.oci.descriptor import OCI_CONFIG, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.registry.authorization import GRANTS
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import Credential
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.trust import Reach, reach, reach_of, refusal
from tests.testbed.registry_server import FakeServer, FixedHosts, serve

BODY = b"{}"
CONFIG = Descriptor(OCI_CONFIG, sha256_digest(BODY), 2)
REFERENCE = Reference.parse("registry.example/team/app:1")
ALICE = Credential("alice", "wonder:land")
SCOPE = "repository:team/app:pull"


class Held:
    """The same credentials for every registry; counts the questions."""

    def __init__(self, *credentials: Credential) -> None:
        self.credentials = list(credentials)
        self.asked: list[tuple[str, str]] = []

    def lookup(self, host: str, repository: str) -> list[Credential]:
        self.asked.append((host, repository))
        return self.credentials


@dataclass
class TokenService:
    """A registry and its token service in one FAKE server; a test changes how they answer."""

    server: FakeServer = field(default_factory=lambda: FakeServer(""))
    realm: str = ""
    post: bool = True
    users: dict[str, str] = field(default_factory=dict)
    expires_in: float = 300
    issued: int = 0
    revoked: set[str] = field(default_factory=set)
    forms: list[dict[str, str]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    askers: int = 0
    """How many must have been refused before a token is given out."""
    all_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        return await self._token(request) if request.path == "/token" else self._blob(request)

    async def _token(self, request: web.Request) -> web.Response:
        if self.askers:
            await self.all_asked.wait()
        name, password = "", ""
        if request.method == "POST":
            if not self.post:
                return web.Response(status=405)
            form = {key: value[0] for key, value in parse_qs(await request.text()).items()}
            self.forms.append(form)
            name, password = form.get("username", ""), form.get("password", form.get("refresh_token", ""))
        else:
            self.queries.append(request.query_string)
            basic = request.headers.get("Authorization", "").removeprefix("Basic ")
            name, _, password = base64.b64decode(basic).decode().partition(":")
        if self.users and self.users.get(name) != password:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        self.issued += 1
        return web.json_response({"token": f"token-{self.issued}", "expires_in": self.expires_in})

    def _blob(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token.startswith("token-") and token not in self.revoked:
            return web.Response(body=BODY)
        if len(self.blob_requests) >= self.askers:
            self.all_asked.set()
        realm = self.realm or f"{self.server.url}/token"
        header = f'Bearer realm="{realm}",service="registry.example",scope="{SCOPE}"'
        return web.Response(status=401, headers={"WWW-Authenticate": header})

    @property
    def blob_requests(self) -> list[str]:
        """The Authorization header of each request for the blob."""
        found = [request for request in self.server.requests if request.path != "/token"]
        return [request.headers.get("Authorization", "") for request in found]


@asynccontextmanager
async def token_service(**settings: object) -> AsyncIterator[TokenService]:
    service = TokenService(**settings)  # type: ignore[arg-type]
    async with serve(service.respond) as server:
        service.server = server
        yield service


def client(server: FakeServer, *credentials: Credential) -> RegistryClient:
    return RegistryClient(FixedHosts(server.host()), Held(*credentials), attempts=1, stall_timeout=2)


async def fetch(registry: RegistryClient) -> None:
    assert await registry.fetch_document(REFERENCE, CONFIG) == BODY


async def failure(registry: RegistryClient) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await fetch(registry)
    return caught.value


async def test_an_open_registry_is_asked_for_no_token() -> None:
    async with serve(lambda request: web.Response(body=BODY)) as server, client(server, ALICE) as registry:
        await fetch(registry)
        assert [request.headers.get("Authorization") for request in server.requests] == [None]


async def test_an_anonymous_token_is_got_by_get_and_kept() -> None:
    async with token_service() as service, client(service.server) as registry:
        await fetch(registry)
        await fetch(registry)
        assert service.queries == [f"service=registry.example&scope={SCOPE}"]
        assert service.forms == []
        assert service.blob_requests == ["", "Bearer token-1", "Bearer token-1"]


async def test_a_password_is_traded_for_a_token_by_post() -> None:
    async with token_service(users={"alice": "wonder:land"}) as service:
        async with client(service.server, ALICE) as registry:
            await fetch(registry)
        (form,) = service.forms
        assert form == {
            "service": "registry.example", "scope": SCOPE, "client_id": "imageprepull",
            "grant_type": "password", "username": "alice", "password": "wonder:land",
        }  # fmt: skip
        assert service.queries == []


async def test_a_service_without_post_is_asked_by_get() -> None:
    async with token_service(users={"alice": "wonder:land"}, post=False) as service:
        async with client(service.server, ALICE) as registry:
            await fetch(registry)
        assert len(service.queries) == 1


async def test_an_identity_token_is_a_refresh_token() -> None:
    async with token_service(users={"": "identity"}) as service:
        async with client(service.server, Credential(identity_token="identity")) as registry:
            await fetch(registry)
        assert service.forms[0]["grant_type"] == "refresh_token"


async def test_a_registry_token_is_sent_as_it_is() -> None:
    async with token_service() as service:
        async with client(service.server, Credential(registry_token="token-mine")) as registry:
            await fetch(registry)
        assert service.blob_requests == ["", "Bearer token-mine"]
        assert service.issued == 0


async def test_those_who_ask_at_once_share_one_token() -> None:
    async with token_service(askers=10) as service, client(service.server) as registry:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(fetch(registry))
        assert service.issued == 1


async def test_a_token_that_expires_is_renewed_before_it_is_refused() -> None:
    async with token_service(expires_in=1) as service, client(service.server) as registry:
        await fetch(registry)
        await asyncio.sleep(1.1)  # the life of the token
        await fetch(registry)
        assert service.blob_requests == ["", "Bearer token-1", "Bearer token-2"]


async def test_a_token_that_was_good_and_is_refused_is_renewed_once() -> None:
    async with token_service() as service, client(service.server) as registry:
        await fetch(registry)
        service.revoked = {"token-1"}
        await fetch(registry)
        assert service.blob_requests[2:] == ["Bearer token-1", "Bearer token-2"]
        service.revoked = {"token-2", "token-3", "token-4"}
        assert (await failure(registry)).kind is ErrorKind.CREDENTIALS
        assert service.issued == 3


async def test_a_fresh_token_that_is_refused_is_not_got_again() -> None:
    async with token_service(revoked={"token-1", "token-2"}) as service, client(service.server) as registry:
        error = await failure(registry)
        # Anybody gets such a token: it is not ours that was refused.
        assert (error.kind, error.reason, error.status) == (ErrorKind.CREDENTIALS, "DeniedOrMissing", 401)
        assert service.issued == 1


async def test_a_token_that_is_good_elsewhere_and_refused_here_does_not_go_on_for_ever() -> None:
    service = TokenService()

    async def respond(request: web.Request) -> web.StreamResponse:
        answer = await service.respond(request)
        if request.path == "/token" or answer.status == 401:
            return answer
        # Meanwhile another request got through with the same token.
        token = request.headers["Authorization"]
        registry._authorizer.accepted(service.server.host(), "team/app", token)
        return web.Response(status=403)

    async with serve(respond) as service.server, client(service.server) as registry:
        assert (await failure(registry)).status == 403
        assert service.issued < 10


async def test_a_wrong_password_is_rejected_by_name_and_never_shown() -> None:
    async with token_service(users={"alice": "other"}) as service:
        async with client(service.server, ALICE) as registry:
            error = await failure(registry)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "CredentialsRejected")
        assert "wonder" not in str(error) + repr(error) + repr(ALICE)


async def test_the_next_credential_is_tried() -> None:
    async with token_service(users={"bob": "b"}) as service:
        async with client(service.server, ALICE, Credential("bob", "b")) as registry:
            await fetch(registry)
        assert service.issued == 1


async def test_rotated_credentials_are_asked_for_after_a_refusal() -> None:
    async with token_service(users={"bob": "b"}) as service:
        held = Held(ALICE)
        async with RegistryClient(FixedHosts(service.server.host()), held, attempts=1) as registry:
            await failure(registry)
            held.credentials = [Credential("bob", "b")]
            await fetch(registry)


# Basic


def basic(user: str, password: str) -> Callable[[web.Request], web.Response]:
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def respond(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == wanted:
            return web.Response(body=BODY)
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    return respond


async def test_a_password_is_sent_when_asked_for_and_from_then_on() -> None:
    async with serve(basic("alice", "wonder:land")) as server, client(server, ALICE) as registry:
        await fetch(registry)
        await fetch(registry)
        assert len(server.requests) == 3


async def test_a_wrong_password_is_sent_once() -> None:
    async with serve(basic("alice", "x")) as server, client(server, ALICE) as registry:
        assert (await failure(registry)).reason == "CredentialsRejected"
        assert sum("Authorization" in request.headers for request in server.requests) == 1


async def test_no_password_where_one_is_wanted() -> None:
    async with serve(basic("alice", "x")) as server, client(server) as registry:
        error = await failure(registry)
        assert (error.reason, error.kind) == ("DeniedOrMissing", ErrorKind.CREDENTIALS)
        assert "user name and password" in str(error)


async def test_an_unknown_scheme_is_named() -> None:
    def respond(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Negotiate"})

    async with serve(respond) as server, client(server, ALICE) as registry:
        error = await failure(registry)
        assert error.reason == "UnsupportedAuthorization"
        assert "negotiate" in str(error)


# Where credentials go


@pytest.mark.parametrize("location", ["{}/elsewhere", "{}/v2/team/app/blobs/x"])
async def test_a_redirect_to_another_origin_gets_no_credentials(location: str) -> None:
    async with serve(lambda request: web.Response(body=BODY)) as store:

        def respond(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=r"})
            return web.Response(status=307, headers={"Location": location.format(store.url)})

        async with serve(respond) as server, client(server, ALICE) as registry:
            await fetch(registry)
        (request,) = store.requests
        assert "Authorization" not in request.headers


async def test_a_redirect_within_the_origin_keeps_them() -> None:
    def respond(request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=r"})
        if request.path == "/moved":
            return web.Response(body=BODY)
        return web.Response(status=307, headers={"Location": "/moved"})

    async with serve(respond) as server, client(server, ALICE) as registry:
        await fetch(registry)


async def test_a_redirect_target_that_refuses_does_not_cost_the_token() -> None:
    answers = iter([web.Response(status=403)])
    service = TokenService()

    async def respond(request: web.Request) -> web.StreamResponse:
        answer = await service.respond(request)
        if request.path != "/token" and answer.status == 200:
            return web.Response(status=307, headers={"Location": f"{store.url}/x"})
        return answer

    async with (
        serve(lambda request: next(answers, None) or web.Response(body=BODY)) as store,
        serve(respond) as service.server,
        RegistryClient(FixedHosts(service.server.host()), Held(), attempts=2, backoff=0.001) as registry,
    ):
        await fetch(registry)
        assert service.issued == 1
        assert len(store.requests) == 2


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/token",
        "http://[fe80::1]/token",
        "http://0.0.0.0/token",
        "file:///etc/passwd",
        "ftp://127.0.0.1/token",
        "http://user:pw@127.0.0.1/token",
        "/token",
        "http://[",
        "http://xn--/token",
        "http://h:99999/token",
        "http://a..b/token",
        "http://" + "a" * 70 + ".example/token",
        "http://[::ffff:a9fe:a9fe]/token",
        "http://[64:ff9b::a9fe:a9fe]/token",
        "http://2852039166/token",
        "http://0251.0376.0251.0376/token",
    ],
)
async def test_a_realm_where_no_token_service_can_be_is_refused(realm: str) -> None:
    async with token_service(realm=realm) as service, client(service.server, ALICE) as registry:
        error = await failure(registry)
        assert error.reason == "RealmRefused"
        assert not error.retryable
        assert "pw@" not in str(error)
        assert service.issued == 0


async def test_a_loopback_registry_may_have_its_token_service_on_another_port() -> None:
    async with token_service() as tokens, token_service(realm=f"{tokens.server.url}/token") as service:
        async with client(service.server) as registry:
            await fetch(registry)
        assert tokens.issued == 1


PUBLIC, PRIVATE, LOOPBACK, LINK_LOCAL = "8.8.8.8", "10.1.2.3", "127.0.0.1", "169.254.169.254"


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        (PUBLIC, PUBLIC, True),
        (PUBLIC, PRIVATE, False),
        (PUBLIC, LOOPBACK, False),
        (PRIVATE, PUBLIC, True),
        (PRIVATE, PRIVATE, True),
        (PRIVATE, LOOPBACK, False),
        (LOOPBACK, PUBLIC, True),
        (LOOPBACK, PRIVATE, True),
        (LOOPBACK, LOOPBACK, True),
        (PUBLIC, "::1", False),
        (PUBLIC, "::ffff:127.0.0.1", False),
        (PUBLIC, "fd00::1", False),
        (PUBLIC, "100.64.0.1", False),
        (PUBLIC, "2606:4700::1", True),
        *((source, LINK_LOCAL, False) for source in (PUBLIC, PRIVATE, LOOPBACK, LINK_LOCAL)),
        (LOOPBACK, "fe80::1%eth0", False),
        (LOOPBACK, "0.0.0.0", False),
        (LOOPBACK, "::", False),
        (LOOPBACK, "224.0.0.1", False),
        (PRIVATE, "100.64.0.1", True),
        (PRIVATE, "fec0::1", True),
        (PUBLIC, "fec0::1", False),
        *(
            (source, metadata, False)
            for source in (PUBLIC, PRIVATE, LOOPBACK)
            for metadata in (
                "100.100.100.200",
                "168.63.129.16",
                "fd00:ec2::254",
                "192.0.0.192",
                "169.254.170.2",
            )
        ),
        (LINK_LOCAL, PRIVATE, True),
        (LINK_LOCAL, LOOPBACK, False),
    ],
)
def test_a_target_may_be_as_private_as_the_registry(source: str, target: str, allowed: bool) -> None:
    assert (refusal(reach_of([source]), [target]) is None) is allowed


@pytest.mark.parametrize(
    "form",
    ["::ffff:{}", "64:ff9b::{}", "64:ff9b:1::{}", "64:ff9b:1:2:3:4:{}", "2002:{}::1", "::{}", "::ffff:0:{}",
     "2001:0:{}::1", "64:ff9b:1:0:{u}::", "64:ff9b:1:{v}::"],
)  # fmt: skip
@pytest.mark.parametrize("address", [PRIVATE, LOOPBACK, LINK_LOCAL, "168.63.129.16"])
def test_an_address_inside_another_is_judged(form: str, address: str) -> None:
    a, b, c, d = (int(part) for part in address.split("."))
    packed = f"{a:02x}{b:02x}:{c:02x}{d:02x}"
    behind_64, behind_48 = f"{a:x}:{b:02x}{c:02x}:{d:02x}00", f"{a:02x}{b:02x}:{c:x}:{d:02x}00"
    target = form.format(packed, u=behind_64, v=behind_48)
    assert refusal(Reach.PUBLIC, [target]) is not None
    if reach(address) is Reach.FORBIDDEN:
        assert refusal(Reach.LOOPBACK, [target]) is not None


@pytest.mark.parametrize("form", ["::ffff:808:808", "64:ff9b::808:808", "2002:808:808::1", "::808:808"])
def test_a_public_address_inside_another_is_public(form: str) -> None:
    assert refusal(Reach.PUBLIC, [form]) is None


def test_behind_a_translator_of_its_own_network_a_public_registry_is_as_usual() -> None:
    source, target = "64:ff9b:1::808:808", "64:ff9b:1::404:404"
    assert refusal(reach_of([source]), [target]) is None


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], Reach.PUBLIC),
        ([PUBLIC, "2606:4700::1"], Reach.PUBLIC),
        ([PRIVATE, "2606:4700::1"], Reach.PRIVATE),
        ([LOOPBACK, "::1"], Reach.LOOPBACK),
        ([PUBLIC, LOOPBACK], Reach.PRIVATE),
        ([PUBLIC, LINK_LOCAL], Reach.PRIVATE),
    ],
)
def test_a_loopback_address_among_others_opens_no_loopback(addresses: list[str], expected: Reach) -> None:
    assert reach_of(addresses) is expected


def test_one_forbidden_address_of_many_is_enough() -> None:
    assert refusal(reach_of([PUBLIC]), [PUBLIC, PRIVATE]) is not None


# What the token service may answer


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>"},
        {"text": "{}"},
        {"text": '{"token":""}'},
        {"text": '{"token":"a b"}'},
        {"text": '{"token":"a\\r\\nX: y"}'},
        {"text": "[" * 10_000},
        {"body": b"\xff"},
    ],
)
async def test_an_answer_without_a_token_is_named_so(answer: dict[str, str]) -> None:
    def respond(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(**answer)  # type: ignore[arg-type]
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with serve(respond) as server, client(server) as registry:
        error = await failure(registry)
        assert error.reason == "NotARegistryAnswer"
        assert "without a token" in str(error)


@pytest.mark.parametrize(("code", "kind"), [(500, ErrorKind.TEMPORARY), (429, ErrorKind.THROTTLED), (403, ErrorKind.CREDENTIALS)])  # fmt: skip
async def test_a_failing_token_service_is_temporary_and_a_refusing_one_is_not(
    code: int, kind: ErrorKind
) -> None:
    def respond(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(status=code)
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with serve(respond) as server, client(server) as registry:
        error = await failure(registry)
        assert error.kind is kind
        assert "GET /token" in str(error)


async def test_what_is_known_of_repositories_is_bounded() -> None:
    async with serve(lambda request: web.Response(body=BODY)) as server, client(server) as registry:
        host = server.host()
        for number in range(GRANTS + 5):
            await registry._authorizer.authorization(host, f"r{number}")
            await registry._authorizer.authorization(host, "r0")
        assert len(registry._authorizer._grants) == GRANTS
        assert (host.url, "r0") in registry._authorizer._grants, "what is used stays"


async def test_a_token_service_that_fails_fails_all_who_wait_at_once_and_as_what_it_is() -> None:
    asked = waiting = 0
    all_wait = asyncio.Event()

    async def respond(request: web.Request) -> web.Response:
        nonlocal asked
        if request.path == "/token":
            asked += 1
            await all_wait.wait()
            return web.Response(status=503)
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with serve(respond) as server, client(server) as registry:
        rejected = registry._authorizer.rejected

        async def counted(*arguments: Any) -> bool:
            nonlocal waiting
            waiting += 1
            if waiting == 5:
                all_wait.set()
            return await rejected(*arguments)

        registry._authorizer.rejected = counted  # type: ignore[method-assign,assignment]
        errors = await asyncio.gather(*(failure(registry) for _ in range(5)))
        assert {error.kind for error in errors} == {ErrorKind.TEMPORARY}
        assert len({id(error) for error in errors}) == 5
        assert asked == 1
        assert (await failure(registry)).kind is ErrorKind.TEMPORARY
        assert asked == 2, "later comers ask for themselves"
