"""Whom a request goes through, by the rules of Go's httpproxy package, and what a proxy sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from yarl import URL

from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import NoProxy, Proxies
from tests.testbed.faulty_registry_quirks import QuirkyRegistry
from tests.testbed.faulty_registry_tls import Certificates, tls
from tests.testbed.registry_server import FixedHosts

# What golang.org/x/net/http/httpproxy v0.61.0 answers to each of these was compared once.
UNMATCHED = "foo.example, .dot.example, *.star.example, port.example:5000, 10.0.0.0/8, 192.168.7.7, fd00::1, [fd00::5]:5000, 172.16.0.1:80"


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "direct"),
    [
        ("", "registry.example", "443", False),
        ("", "localhost", "80", True),
        ("", "127.0.0.1", "80", True),
        ("", "127.9.9.9", "80", True),
        ("", "::1", "80", True),
        ("", "localhost.example", "80", False),
        ("*", "registry.example", "443", True),
        ("x, * ,y", "10.0.0.1", "443", True),
        (UNMATCHED, "foo.example", "443", True),
        (UNMATCHED, "a.b.foo.example", "443", True),
        (UNMATCHED, "FOO.example", "443", True),
        (UNMATCHED, "xfoo.example", "443", False),
        (UNMATCHED, "dot.example", "443", False),
        (UNMATCHED, "a.dot.example", "443", True),
        (UNMATCHED, "star.example", "443", False),
        (UNMATCHED, "a.star.example", "443", True),
        (UNMATCHED, "port.example", "5000", True),
        (UNMATCHED, "port.example", "443", False),
        (UNMATCHED, "10.200.3.4", "443", True),
        (UNMATCHED, "11.0.0.1", "443", False),
        (UNMATCHED, "192.168.7.7", "5000", True),
        (UNMATCHED, "192.168.7.8", "5000", False),
        (UNMATCHED, "fd00::1", "5000", True),
        (UNMATCHED, "fd00:0:0::1", "5000", True),
        (UNMATCHED, "fd00::2", "5000", False),
        (UNMATCHED, "fd00::5", "5000", True),
        (UNMATCHED, "fd00::5", "443", False),
        (UNMATCHED, "172.16.0.1", "80", True),
        (UNMATCHED, "172.16.0.1", "443", False),
        ("[fd00::1]", "fd00::1", "443", False),
        ("fd00::/8", "fd12::7", "443", True),
        ("::ffff:10.0.0.0/104", "10.1.1.1", "443", True),
        ("10.0.0.1/8", "10.2.2.2", "443", True),
        (" ,, :80,a.example/b, ", "a.example", "443", False),
        ("10.example", "10.0.0.1", "443", False),
        ("10.0.0.0/255.0.0.0", "10.1.1.1", "443", False),
        ("10.0.0.0/0.255.255.255", "10.1.1.1", "443", False),
        ("10.0.0.0/+8", "10.1.1.1", "443", False),
        ("10.0.0.0/", "10.0.0.0", "443", False),
        ("10.0.0.0/08", "10.1.1.1", "443", True),
        ("bücher.example", "xn--bcher-kva.example", "443", True),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(no_proxy: str, host: str, port: str, direct: bool) -> None:
    assert NoProxy(no_proxy).matches(host, port) is direct


def test_row_80_networks_stars_and_addresses_are_not_proxied() -> None:
    proxies = Proxies.from_environment(
        {
            "HTTPS_PROXY": "http://proxy:3128",
            "HTTP_PROXY": "proxy:3128",
            "NO_PROXY": "10.0.0.0/8,*.corp,fd00::1",
        }
    )
    for url in ("https://10.1.2.3/v2", "http://registry.corp:5000/v2", "http://[fd00::1]:5000/v2"):
        assert proxies.choose(URL(url)) is None
    for url in ("https://registry.example/v2", "http://11.0.0.1/v2"):
        found = proxies.choose(URL(url))
        assert found is not None
        assert str(found.url) == "http://proxy:3128"


@pytest.mark.parametrize(
    ("environment", "https", "http"),
    [
        ({}, None, None),
        ({"https_proxy": "http://small:1"}, "http://small:1", None),
        ({"HTTPS_PROXY": "http://large:1", "https_proxy": "http://small:1"}, "http://large:1", None),
        ({"HTTPS_PROXY": "", "https_proxy": "small:1"}, "http://small:1", None),
        ({"HTTP_PROXY": "http://p:1/"}, None, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None, None),
        ({"HTTPS_PROXY": "https://p:1"}, "https://p:1", None),
        ({"ALL_PROXY": "http://p:1"}, None, None),
    ],
)
def test_the_environment_says_whom(environment: dict[str, str], https: str | None, http: str | None) -> None:
    proxies = Proxies.from_environment(environment)
    for url, expected in (("https://r.example/", https), ("http://r.example/", http)):
        found = proxies.choose(URL(url))
        assert (found and str(found.url)) == expected


@pytest.mark.parametrize("address", ["socks5://p:1", "http://", "ftp://p", "http://[::1"])
def test_an_address_that_is_no_proxy_is_named_by_its_variable(address: str) -> None:
    proxies = Proxies(https=address)
    with pytest.raises(RegistryError, match="HTTPS_PROXY") as caught:
        proxies.choose(URL("https://r.example/"))
    assert caught.value.reason == "InvalidProxy"


@dataclass
class FakeProxy:
    """A FAKE proxy: forwards to one server whatever it is asked for, or refuses."""

    address: str = ""
    heads: list[str] = field(default_factory=list)


@asynccontextmanager
async def proxy(target: str, *, answer: str = "") -> AsyncIterator[FakeProxy]:
    found = FakeProxy()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            found.heads.append(head)
            if answer:
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
                return
            host, _, port = target.rpartition(":")
            upstream, up = await asyncio.open_connection(host, int(port))
            if head.startswith("CONNECT"):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                method, url, rest = head.split(" ", 2)
                up.write(f"{method} {URL(url).raw_path_qs} {rest}".encode())
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, up))
                group.create_task(copy(upstream, writer))
        except (OSError, ExceptionGroup, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    found.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


def client_through(address: str, host: str) -> RegistryClient:
    proxies = Proxies(http=f"http://user:p%40ss@{address}", https=f"http://user:p%40ss@{address}")
    return RegistryClient(FixedHosts(RegistryHost(host)), proxies=proxies, attempts=1, stall_timeout=2)


async def test_plain_http_goes_through_the_proxy_with_our_name_for_it() -> None:
    async with (
        QuirkyRegistry() as world,
        proxy(world.registry.address) as gate,
        client_through(gate.address, "http://registry.example/v2") as client,
    ):
        assert await client.fetch_document(world.reference, world.manifest) == world.body
        (head,) = gate.heads
        assert head.startswith("GET http://registry.example/v2/team/app/manifests/")
        assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in head


async def test_names_behind_a_proxy_are_not_looked_up_here() -> None:
    """Neither the registry nor where it sends us to: the proxy may be the only one who knows them."""

    source = RegistryHost("http://registry.invalid/v2")
    async with client_through("127.0.0.1:1", "http://registry.invalid/v2") as client:
        await client._transport.check(source, URL("http://cdn.invalid"), "GET /")
        for address in ("169.254.169.254", "2852039166", "0xa9.0376.43518", "[64:ff9b::a9fe:a9fe]"):
            with pytest.raises(RegistryError, match=r"169\.254\.169\.254|a9fe:a9fe"):
                await client._transport.check(source, URL(f"http://{address}", encoded=True), "GET /")


@pytest.mark.parametrize(
    ("answer", "reason", "kind"),
    [
        ("407 Proxy Authentication Required", "ProxyRefused", ErrorKind.CREDENTIALS),
        ("403 Forbidden", "ProxyRefused", ErrorKind.PERMANENT),
        ("502 Bad Gateway", "ProxyUnreachable", ErrorKind.TEMPORARY),
    ],
)
async def test_https_goes_by_connect_and_a_proxy_that_refuses_says_so(
    answer: str, reason: str, kind: ErrorKind
) -> None:
    async with (
        QuirkyRegistry() as world,
        proxy(world.registry.address, answer=answer) as gate,
        client_through(gate.address, "https://registry.example/v2") as client,
    ):
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, world.manifest)
        assert (caught.value.reason, caught.value.kind) == (reason, kind)
        assert "the proxy answered" in str(caught.value)
        assert "p@ss" not in str(caught.value)
        assert gate.heads[0].startswith("CONNECT registry.example:443 HTTP/1.1")
        assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in gate.heads[0]


async def test_a_proxy_that_is_not_there_is_named_as_such() -> None:
    async with (
        QuirkyRegistry() as world,
        client_through("127.0.0.1:1", "https://registry.example/v2") as client,
    ):
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, world.manifest)
        assert (caught.value.reason, caught.value.kind) == ("ProxyUnreachable", ErrorKind.TEMPORARY)


async def test_https_through_a_proxy_is_a_tunnel_that_the_proxy_cannot_look_into(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    root = certificates.authority("root")
    leaf = certificates.leaf("leaf", "root", san="DNS:registry.example")
    async with (
        QuirkyRegistry() as world,
        tls(world, leaf, certificates.key("leaf")) as address,
        proxy(address) as gate,
    ):
        host = RegistryHost("https://registry.example/v2", ca=(root,))
        proxies = Proxies(https=gate.address)
        async with RegistryClient(FixedHosts(host), proxies=proxies, attempts=1, stall_timeout=5) as client:
            for _ in range(3):
                assert await client.fetch_document(world.reference, world.manifest) == world.body
        (head,) = gate.heads
        assert head.startswith("CONNECT registry.example:443"), "one tunnel, kept"
        assert "/v2/" not in head
