"""Between the check of a target and the connection to it nothing changes: names, DNS, pools and proxies."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from imageprepull.registry.errors import RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.transport import Transport
from tests.testbed.registry_server import FakeServer, serve

PUBLIC = RegistryHost("http://public.example/v2")
PRIVATE = RegistryHost("http://private.example/v2")
LOCAL = RegistryHost("http://local.example/v2")
REGISTRIES = {"public.example": "8.8.8.8", "private.example": "10.0.0.8", "local.example": "127.0.0.1"}


class FakeDns(AbstractResolver):
    """FAKE answers by name, one after the other and the last for ever; names are spelt as the C library gets them."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = {name: text.split() for name, text in answers.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        name = host.encode("idna").decode().removesuffix(".example")
        left = self.answers.get(name) or [REGISTRIES[f"{name}.example"]]
        address = left.pop(0) if len(left) > 1 else left[0]
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=6, flags=0
            )
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@asynccontextmanager
async def world(
    answers: Mapping[str, str], proxies: Proxies | None = None
) -> AsyncIterator[tuple[Transport, FakeServer, str]]:
    """A transport with that DNS and no memory of it, and a server on loopback with its port."""
    async with (
        serve(lambda request: web.Response(text="secret")) as server,
        Transport(stall_timeout=1, connect_timeout=1, proxies=proxies) as transport,
    ):
        names = transport._guard.names
        names._lifetime, names._inner = 0, FakeDns(answers)
        yield transport, server, server.address.rpartition(":")[2]


async def go(transport: Transport, host: RegistryHost, url: str) -> str:
    answer = await transport.go("GET", host, URL(url, encoded=True), {})
    body = await answer.read(100)
    answer.response.release()
    return body.decode()


async def refused(transport: Transport, host: RegistryHost, url: str) -> str:
    with pytest.raises(RegistryError) as caught:
        await go(transport, host, url)
    assert caught.value.reason == "RedirectRefused"
    assert caught.value.host == host.name
    return str(caught.value)


async def test_a_name_is_judged_in_the_spelling_that_is_connected_to() -> None:
    # Python makes `fass` of `faß`, which is not what the URL says.
    async with world({"fass": "8.8.8.8", "xn--fa-hia": "127.0.0.1"}) as (transport, server, port):
        await refused(transport, PUBLIC, f"http://xn--fa-hia.example:{port}/latest")
        assert server.requests == []


async def test_an_answer_that_changes_after_the_check_is_not_connected_to() -> None:
    async with world({"cdn": "8.8.4.4 127.0.0.1"}) as (transport, server, port):
        assert "127.0.0.1 is a loopback address" in await refused(
            transport, PUBLIC, f"http://cdn.example:{port}/x"
        )
        assert server.requests == []


async def test_a_connection_that_one_registry_may_have_is_not_lent_to_another() -> None:
    # The check, the connection, and for the public registry both again.
    async with world({"cdn": "127.0.0.1 127.0.0.1 8.8.4.4 127.0.0.1"}) as (transport, server, port):
        assert await go(transport, LOCAL, f"http://cdn.example:{port}/x") == "secret"
        await refused(transport, PUBLIC, f"http://cdn.example:{port}/x")
        assert len(server.requests) == 1


async def test_a_registry_that_the_user_names_may_be_anywhere() -> None:
    async with world({"mine": "127.0.0.1"}) as (transport, _, port):
        mine = RegistryHost(f"http://mine.example:{port}/v2")
        assert await transport.check(mine, URL(f"{mine.url}/x"), "GET /") is None
        assert await go(transport, mine, f"{mine.url}/x") == "secret"


async def test_who_is_sent_on_gets_no_more_private_on_the_way() -> None:
    """A private registry names a public host, and that one names an address of the private network."""
    async with world({"cdn": "8.8.4.4", "store": "10.0.0.9"}) as (transport, _, _):
        store = URL("http://store.example/x")
        await transport._guard.check([URL(PRIVATE.url)], store, "private.example", "GET /")
        with pytest.raises(RegistryError, match=r"10\.0\.0\.9 is a private address"):
            await transport._guard.check(
                [URL(PRIVATE.url), URL("http://cdn.example/x")], store, "private.example", "GET /"
            )


async def test_a_host_that_another_one_named_is_no_users_choice() -> None:
    async with world({"store": "127.0.0.1"}) as (transport, server, port):
        named = RegistryHost(f"http://store.example:{port}/v2", named_by=PUBLIC)
        with pytest.raises(RegistryError, match="loopback"):
            await go(transport, named, f"{named.url}/x")
        assert server.requests == []


async def test_a_proxy_may_be_private_and_what_goes_through_it_is_not_looked_up() -> None:
    async with serve(lambda request: web.Response(text="by proxy")) as gate:
        port = gate.address.rpartition(":")[2]
        proxies = Proxies(http=f"http://gate.example:{port}")
        async with world({"gate": "127.0.0.1"}, proxies) as (transport, _, _):
            assert await go(transport, PUBLIC, "http://unknown.example/x") == "by proxy"
            for address in ("10.0.0.1", "0xa000001", "127.1"):
                await refused(transport, PUBLIC, f"http://{address}/x")
        assert len(gate.requests) == 1
