"""A FAKE registry with its object store and token service, and one switch per behaviour seen in the wild.

`QuirkyRegistry(29)` behaves well but for row 29 of the list of registry behaviours that the tests of
`tests/unit/registry_matrix` go through; `faulty_registry_authorisation`, `_redirects`, `_manifests`, `_blobs` and
`_limits` hold the switches. Content is made from a seed, and nothing depends on time or chance.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from imageprepull.oci.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import Credential
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from tests.testbed.registry_server import FakeServer, FixedHosts, serve

Switch = Callable[["QuirkyRegistry", web.Request], Awaitable[web.StreamResponse | None]]
SWITCHES: dict[int, Switch] = {}
REPOSITORY = "team/app"
AT_STORE = web.RequestKey("at_store", bool)
"""Whether a request came to the store and not to the registry."""
SCOPE = f"repository:{REPOSITORY}:pull"


def row(*numbers: int) -> Callable[[Switch], Switch]:
    """Register a switch: it answers a request in its own way, or None where a good registry's answer will do."""

    def register(switch: Switch) -> Switch:
        for number in numbers:
            assert number not in SWITCHES, f"row {number} has two switches"
            SWITCHES[number] = switch
        return switch

    return register


class Held:
    """Credentials for any host, most specific first; remembers the hosts it was asked for."""

    def __init__(self, *credentials: Credential) -> None:
        self.credentials = list(credentials)
        self.asked: list[str] = []

    def lookup(self, host: str, repository: str) -> list[Credential]:
        self.asked.append(host)
        return self.credentials


class QuirkyRegistry:
    """`async with QuirkyRegistry(row) as registry`: an image, its registry and its store.

    `variant` chooses among the forms that a behaviour has been seen in. `seen` counts what a switch counts.
    """

    def __init__(self, number: int | None = None, variant: Any = None, *, seed: int = 1) -> None:
        self.number = number
        self.switch = SWITCHES[number] if number is not None else None
        self.variant = variant
        self.seen: Counter[str] = Counter()
        self.notes: dict[str, Any] = {}
        chance = random.Random(seed)
        self.layer = chance.randbytes(300_000)
        self.blobs: dict[str, bytes] = {}
        self.documents: dict[str, tuple[str, bytes]] = {}
        layer = self.add_blob(OCI_LAYER, self.layer)
        config = self.add_blob(OCI_CONFIG, json.dumps({"os": "linux", "seed": seed}).encode())
        self.config, self.blob = config, layer
        self.body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": entry(config),
                "layers": [entry(layer)],
            }
        ).encode()
        self.manifest = self.add_document(OCI_MANIFEST, self.body, "1")

    def add_blob(self, media_type: str, body: bytes) -> Descriptor:
        descriptor = Descriptor(media_type, sha256_digest(body), len(body))
        self.blobs[descriptor.digest] = body
        return descriptor

    def add_document(self, media_type: str, body: bytes, tag: str = "") -> Descriptor:
        descriptor = Descriptor(media_type, sha256_digest(body), len(body))
        for name in (descriptor.digest, tag):
            self.documents[name] = media_type, body
        return descriptor

    def add_index(self, *entries: dict[str, Any], tag: str = "index") -> Descriptor:
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()
        return self.add_document(OCI_INDEX, body, tag)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self.registry: FakeServer = await self._stack.enter_async_context(serve(self._at_registry))
        self.store: FakeServer = await self._stack.enter_async_context(serve(self._at_store))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def client(
        self, *credentials: Credential, hosts: tuple[RegistryHost, ...] | None = None, **settings: Any
    ) -> RegistryClient:
        """A client that asks this registry, with short times."""
        times: dict[str, Any] = {
            "stall_timeout": 2, "first_byte_timeout": 0.6, "connect_timeout": 5, "backoff": 0.001,
            "throttle_backoff": 0.001, "attempts": 1, "proxies": Proxies(),
        }  # fmt: skip
        chosen = hosts or (self.registry.host(),)
        held = settings.pop("held", None) or Held(*credentials)
        return RegistryClient(FixedHosts(*chosen), held, **{**times, **settings})

    @property
    def reference(self) -> Reference:
        return Reference.parse(f"registry.example/{REPOSITORY}:1")

    def asked(self, what: str = "") -> list[str]:
        """Method and target of the registry's requests that hold `what`."""
        return [line for line in self.registry.asked if what in line]

    async def _at_registry(self, request: web.Request) -> web.StreamResponse:
        request[AT_STORE] = False
        special = await self.switch(self, request) if self.switch else None
        return special or self.good(request)

    async def _at_store(self, request: web.Request) -> web.StreamResponse:
        request[AT_STORE] = True
        special = await self.switch(self, request) if self.switch else None
        return special or self.good(request)

    def good(self, request: web.Request) -> web.StreamResponse:
        """What a registry without quirks answers; a store serves blobs by the same names."""
        _, _, name = request.path.rpartition("/")
        if "/manifests/" in request.path and name in self.documents:
            media_type, body = self.documents[name]
            headers = {"Docker-Content-Digest": sha256_digest(body), "Content-Type": media_type}
            return web.Response(body=body, headers=headers)
        if "/manifests/" not in request.path and name in self.blobs:
            return part(request, self.blobs[name])
        return web.json_response({"errors": [{"code": "NAME_UNKNOWN", "message": "unknown"}]}, status=404)

    def to_store(self, request: web.Request, query: str = "") -> web.Response:
        """A redirect to the same blob in the store."""
        name = request.path.rpartition("/")[2]
        return web.Response(status=307, headers={"Location": f"{self.store.url}/store/{name}{query}"})


def entry(descriptor: Descriptor, **more: Any) -> dict[str, Any]:
    """A descriptor as JSON has it."""
    return {
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size, **more
    }  # fmt: skip


def part(request: web.Request, body: bytes) -> web.Response:
    """The whole or the range asked for, as a good server has it."""
    span = request.headers.get("Range")
    if span is None:
        return web.Response(body=body, content_type="application/octet-stream")
    first, _, last = span.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1 if last else len(body), len(body))
    return web.Response(
        status=206,
        body=body[start:end],
        content_type="application/octet-stream",
        headers={"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"},
    )


def is_blob(request: web.Request) -> bool:
    """Whether a request is for a blob, at the registry or in the store."""
    return "/blobs/" in request.path or request.path.startswith("/store/")


async def start_body(
    request: web.Request, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Begin an answer and send some of its body; the caller decides how it ends. Chunked where the headers say so."""
    given = dict(headers or {})
    chunked = given.pop("Transfer-Encoding", "") == "chunked"
    response = web.StreamResponse(status=status, headers=given)
    if chunked:
        response.enable_chunked_encoding()
    await response.prepare(request)
    if body:
        await response.write(body)
    return response
