"""Tags and documents through the client: verified, bounded, from the first host that can, and errors that say why."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from yarl import URL

from imageprepull.oci.descriptor import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import InvalidManifest
from imageprepull.oci.reference import Reference
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.documents import DOCUMENT_LIMIT
from imageprepull.registry.errors import DigestMismatch, ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.transport import Transport
from tests.testbed.registry_server import FakeServer, FixedHosts, Respond, endless, frozen_tls, serve

REFERENCE = Reference.parse("registry.example/team/app:1")
DIGEST = "sha256:" + "a" * 64
BODY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 2},
        "layers": [],
    }
).encode()
MANIFEST = Descriptor(OCI_MANIFEST, sha256_digest(BODY), len(BODY))
PATH = "/v2/team/app/manifests/1"


def good(request: web.Request) -> web.Response:
    return web.Response(
        body=BODY, content_type=OCI_MANIFEST, headers={"Docker-Content-Digest": MANIFEST.digest}
    )


def status(code: int, **headers: str) -> Respond:
    return lambda request: web.Response(
        status=code, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def client(*servers: FakeServer, attempts: int = 1) -> RegistryClient:
    hosts = FixedHosts(*(server.host() for server in servers))
    return RegistryClient(hosts, stall_timeout=0.5, attempts=attempts, backoff=0.001)


async def resolve(respond: Respond, *, attempts: int = 1) -> tuple[Descriptor, list[str]]:
    async with serve(respond) as server, client(server, attempts=attempts) as registry:
        return await registry.resolve(REFERENCE), server.asked


async def failure(respond: Respond, *, attempts: int = 1) -> tuple[RegistryError, list[str]]:
    async with serve(respond) as server, client(server, attempts=attempts) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.resolve(REFERENCE)
        return caught.value, server.asked


async def document(respond: Respond, descriptor: Descriptor = MANIFEST) -> bytes:
    async with serve(respond) as server, client(server) as registry:
        return await registry.fetch_document(REFERENCE, descriptor)


# What a tag is


async def test_a_head_that_tells_all_is_the_only_request() -> None:
    assert await resolve(good) == (MANIFEST, [f"HEAD {PATH}"])


@pytest.mark.parametrize(
    "headers",
    [{}, {"Docker-Content-Digest": "sha512:" + "a" * 128}, {"Docker-Content-Digest": "sha256:../../x"}],
)
async def test_a_head_that_does_not_is_followed_by_a_get(headers: dict[str, str]) -> None:
    found, asked = await resolve(
        lambda request: web.Response(body=BODY, content_type=OCI_MANIFEST, headers=headers)
    )
    assert (found, asked) == (MANIFEST, [f"HEAD {PATH}", f"GET {PATH}"])


async def test_a_refused_head_is_followed_by_a_get() -> None:
    found, _ = await resolve(
        lambda request: web.Response(status=405) if request.method == "HEAD" else good(request)
    )
    assert found == MANIFEST


async def test_a_missing_tag_is_final_after_one_request() -> None:
    error, asked = await failure(status(404), attempts=3)
    assert (error.reason, error.kind, error.status) == ("NotFound", ErrorKind.PERMANENT, 404)
    assert asked == [f"HEAD {PATH}"]


async def test_a_throttled_head_is_not_followed_by_another_request() -> None:
    error, asked = await failure(status(429, Retry_After="1800"), attempts=3)
    assert (error.kind, error.reason, error.retry_after) == (ErrorKind.THROTTLED, "Throttled", 1800)
    assert asked == [f"HEAD {PATH}"]


async def test_a_short_retry_after_is_kept() -> None:
    answers = iter([web.Response(status=429, headers={"Retry-After": "1"})])
    started = time.monotonic()
    found, asked = await resolve(lambda request: next(answers, None) or good(request), attempts=2)
    assert (found, asked) == (MANIFEST, [f"HEAD {PATH}"] * 2)
    assert time.monotonic() - started >= 1


async def test_a_temporary_error_is_tried_again() -> None:
    answers = iter([web.Response(status=503), web.Response(status=503)])
    found, asked = await resolve(lambda request: next(answers, None) or good(request), attempts=2)
    assert found == MANIFEST
    assert asked == [f"HEAD {PATH}", f"GET {PATH}", f"HEAD {PATH}"]


async def test_a_digest_is_asked_for_and_held_to() -> None:
    wanted = Reference.parse(f"registry.example/team/app@{DIGEST}")
    async with serve(good) as server, client(server) as registry:
        with pytest.raises(DigestMismatch, match=DIGEST):
            await registry.resolve(wanted)


async def test_something_that_is_no_manifest_is_refused() -> None:
    with pytest.raises(InvalidManifest):
        await resolve(lambda request: web.Response(text='{"a": 1}', content_type="text/html"))


# Documents


async def test_a_document_is_verified() -> None:
    assert await document(good) == BODY


async def test_other_bytes_of_the_same_size_are_refused() -> None:
    with pytest.raises(DigestMismatch, match=MANIFEST.digest):
        await document(lambda request: web.Response(body=BODY.replace(b"a", b"b")))


@pytest.mark.parametrize("body", [BODY + b" ", BODY[:-1], b""])
async def test_another_size_is_refused(body: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        await document(lambda request: web.Response(body=body))
    assert caught.value.reason == "SizeMismatch"


async def test_a_document_ends_at_its_size() -> None:
    assert await document(lambda request: endless(request, BODY)) == BODY


async def test_a_document_that_claims_to_be_huge_is_not_asked_for() -> None:
    async with serve(good) as server, client(server) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.fetch_document(
                REFERENCE, Descriptor(OCI_INDEX, MANIFEST.digest, DOCUMENT_LIMIT + 1)
            )
        assert caught.value.reason == "DocumentTooLarge"
        assert server.asked == []


async def test_a_tag_whose_document_is_huge_is_refused() -> None:
    error, _ = await failure(
        lambda request: web.Response(body=b"" if request.method == "HEAD" else b" " * (DOCUMENT_LIMIT + 1))
    )
    assert error.reason == "DocumentTooLarge"


async def test_configs_are_blobs() -> None:
    async with serve(lambda request: web.Response(body=b"{}")) as server, client(server) as registry:
        config = Descriptor(OCI_CONFIG, sha256_digest(b"{}"), 2)
        assert await registry.fetch_document(REFERENCE, config) == b"{}"
        assert server.asked == [f"GET /v2/team/app/blobs/{config.digest}"]


# Several hosts


@pytest.mark.parametrize(
    "mirror",
    [
        status(404),
        status(500),
        status(403),
        status(429),
        lambda request: web.Response(text="<html>", content_type="text/html"),
        lambda request: web.json_response({"manifests": [1], "config": {"a": 1}, "layers": [1]}),
    ],
)
async def test_whatever_a_mirror_says_the_upstream_is_asked(mirror: Respond) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve(mirror))
        last = await stack.enter_async_context(serve(good))
        hosts = FixedHosts(first.host(is_proxy=True), last.host())
        registry = await stack.enter_async_context(RegistryClient(hosts, attempts=1))
        assert await registry.resolve(REFERENCE) == MANIFEST
        assert first.asked[0] == f"HEAD {PATH}?ns=registry.example"
        assert last.asked == [f"HEAD {PATH}"]


async def test_the_error_is_the_upstreams_and_names_what_the_mirrors_said() -> None:
    async with (
        serve(lambda request: web.Response(text="no json")) as first,
        serve(status(404)) as last,
        client(first, last) as registry,
    ):
        with pytest.raises(RegistryError) as caught:
            await registry.resolve(REFERENCE)
        assert caught.value.reason == "NotFound"
        assert f"{first.address} NotARegistryAnswer" in str(caught.value)


async def test_a_mirror_that_may_not_resolve_is_not_asked_for_tags() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve(good))
        last = await stack.enter_async_context(serve(good))
        mirror = first.host(capabilities=frozenset({"pull"}))
        registry = await stack.enter_async_context(RegistryClient(FixedHosts(mirror, last.host())))
        await registry.resolve(REFERENCE)
        assert first.asked == []
        await registry.fetch_document(REFERENCE, MANIFEST)
        assert len(first.asked) == 1


# Redirects


def redirect(location: str) -> Respond:
    return lambda request: web.Response(status=307, headers={"Location": location})


async def test_a_redirect_is_followed_in_exactly_its_spelling() -> None:
    odd = "/store/%7Ea%2fb+c/x%20y?sig=a%2Bb%2F=&z=%e2%82%ac"
    async with serve(good) as store, serve(redirect(f"{store.url}{odd}")) as server:
        async with client(server) as registry:
            assert await registry.resolve(REFERENCE) == MANIFEST
        assert store.asked == [f"HEAD {odd}"]


async def test_redirects_come_to_an_end() -> None:
    error, asked = await failure(redirect("/v2/again"))
    assert error.reason == "RedirectRefused"
    assert len(asked) <= 24


@pytest.mark.parametrize(
    "location",
    ["", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://user@127.0.0.1/", "http://:pw@127.0.0.1/", "http://[::1",
     "http://h:99999/x", "http://h:abc/", "http://xn--/x", "http://fa\u00df.example/x", "http://a..b/",
     "http://" + "a" * 70 + ".example/", "http://.../x"],
)  # fmt: skip
async def test_a_redirect_to_no_http_address_is_refused(location: str) -> None:
    error, _ = await failure(redirect(location))
    assert error.reason == "RedirectRefused"


@pytest.mark.parametrize("location", ["http://h:99999/x", "http://xn--/x", "http://a..b/"])
async def test_a_mirror_with_a_broken_redirect_or_realm_is_passed_over(location: str) -> None:
    def challenge(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{location}"'})

    for broken in (redirect(location), challenge):
        async with serve(broken) as mirror, serve(good) as upstream, client(mirror, upstream) as registry:
            assert await registry.resolve(REFERENCE) == MANIFEST
            assert len(mirror.requests) >= 1


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://0.0.0.0/", "http://2852039166/",
     "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/"],
)  # fmt: skip
async def test_a_redirect_to_a_link_local_address_is_refused(location: str) -> None:
    error, _ = await failure(redirect(location))
    assert error.reason == "RedirectRefused"


@pytest.mark.parametrize("authorization", [None, "Bearer secret"])
async def test_a_redirect_from_tls_to_plain_http_elsewhere_is_refused(authorization: str | None) -> None:
    async with serve(good) as store:
        transport = Transport(stall_timeout=1, connect_timeout=1)

        # The TLS listener is not the point: the answer of one is.
        async def exchange(method: str, url: object, *rest: object, **more: object) -> object:
            return Redirected(f"{store.url}/x")

        transport.exchange = exchange  # type: ignore[method-assign,assignment]
        with pytest.raises(RegistryError) as caught:
            await transport.request(
                "GET", RegistryHost("https://registry.example/v2"), "/a/blobs/b", {}, authorization
            )
        assert caught.value.reason == "RedirectRefused"
        assert "without TLS" in str(caught.value)
        assert store.asked == []


class Redirected:
    """An answer over TLS that redirects, as far as the transport looks at one."""

    def __init__(self, location: str) -> None:
        self.url = URL("https://registry.example/v2/a/blobs/b")
        self.status = 307
        self.headers = {"Location": location}

    def close(self) -> None:
        pass


# Connections


# asyncio of Python 3.11 drops the socket of a TLS handshake that is given up; only a frozen server gets there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_loopback_server_that_freezes_on_tls_is_soon_asked_in_plain_http() -> None:
    async with frozen_tls() as address:
        registry = RegistryClient(HostsConfig(()), connect_timeout=60, probe_timeout=0.2)
        wanted = Descriptor(OCI_CONFIG, sha256_digest(b"plain"), 5)
        async with registry, asyncio.timeout(30):
            assert await registry.fetch_document(Reference.parse(f"{address}/a:1"), wanted) == b"plain"
    gc.collect()  # here, where the warning is expected, not in whichever test comes next


async def test_a_refused_connection_is_temporary_and_names_the_host() -> None:
    async with serve(good) as server:
        address = server.address
    async with RegistryClient(FixedHosts(RegistryHost(f"http://{address}/v2")), attempts=1) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.resolve(REFERENCE)
    assert (caught.value.reason, caught.value.kind) == ("RegistryUnreachable", ErrorKind.TEMPORARY)
    assert address in str(caught.value)


async def test_a_server_that_does_not_answer_stalls() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    error, _ = await failure(respond)
    assert (error.reason, error.kind) == ("Stalled", ErrorKind.TEMPORARY)


async def test_large_headers_are_read() -> None:
    def respond(request: web.Request) -> web.Response:
        answer = good(request)
        answer.headers["Content-Security-Policy"] = "x" * 20_000
        return answer

    assert (await resolve(respond))[0] == MANIFEST


# What errors say


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no \\u001b[31mway"}]}', "application/json", "DENIED: no [31mway"),
        (b"<Error><Code>AccessDenied</Code><Message>m</Message></Error>", "application/xml", "AccessDenied: m"),
        (b'{"errors":[{"code":"X","message":"Bearer abcdefghijkl"}]}', "application/json", "X: Bearer ***"),
        (b"GET https://u:pw@host/?X-Amz-Signature=0123456789 bad", "text/plain", "https://***@host/?X-Amz-Signature=***"),
        (b"<html><b>gone</b> away</html>", "text/html", "gone away"),
        (b"line\r\nline\x00\xff", "text/plain", "line line"),
    ],
)  # fmt: skip
async def test_error_bodies_are_one_clean_line(body: bytes, content_type: str, expected: str) -> None:
    error, _ = await failure(lambda request: web.Response(status=403, body=body, content_type=content_type))
    text = str(error)
    assert expected in text
    assert "\n" not in text
    assert text.isprintable()
    for secret in ("abcdefghijkl", "u:pw", "0123456789 "):
        assert secret not in text


async def test_a_long_error_body_is_cut() -> None:
    error, _ = await failure(lambda request: web.Response(status=403, text="x " * 100_000))
    assert len(str(error)) < 500


STATUSES: list[tuple[int, ErrorKind, str]] = [
    (400, ErrorKind.PERMANENT, "RequestRefused"),
    (401, ErrorKind.CREDENTIALS, "DeniedOrMissing"),
    (403, ErrorKind.CREDENTIALS, "DeniedOrMissing"),
    (408, ErrorKind.TEMPORARY, "RegistryError"),
    (429, ErrorKind.THROTTLED, "Throttled"),
    (500, ErrorKind.TEMPORARY, "RegistryError"),
    (504, ErrorKind.TEMPORARY, "RegistryError"),
]


@pytest.mark.parametrize(("code", "kind", "reason"), STATUSES)
async def test_a_status_says_whether_trying_again_can_help(code: int, kind: ErrorKind, reason: str) -> None:
    error, _ = await failure(status(code))
    assert (error.kind, error.reason, error.status) == (kind, reason, code)


SURPRISES: list[Callable[[web.Request], web.Response]] = [
    lambda request: web.Response(status=204),
    lambda request: web.Response(status=304),
]


@pytest.mark.parametrize("respond", SURPRISES)
async def test_an_answer_of_no_registry_is_named_so(respond: Respond) -> None:
    error, _ = await failure(respond)
    assert error.reason == "NotARegistryAnswer"
