"""TLS and hosts.toml as registries and nodes have them, row by row (A6)."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.tls import TlsContexts, tls_context
from tests.testbed.faulty_registry_quirks import QuirkyRegistry
from tests.testbed.faulty_registry_tls import Certificates, mutual_tls, tls
from tests.testbed.registry_server import serve


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    found = Certificates(tmp_path_factory.mktemp("certificates"))
    found.authority("root")
    found.authority("middle", "root")
    found.leaf("server", "middle")
    found.leaf("direct", "root")
    found.leaf("127.0.0.1", "root", san="")
    found.leaf("client", "root")
    found.leaf("stranger", "root")
    found.authority("other")
    found.leaf("foreign", "other")
    return found


def crt(made: Certificates, name: str) -> Path:
    return made.folder / f"{name}.crt"


async def fetch(world: QuirkyRegistry, address: str, **settings: Any) -> None:
    host = RegistryHost(f"https://{address}/v2", **settings)
    async with world.client(hosts=(host,), stall_timeout=5, connect_timeout=5) as client:
        assert await client.fetch_document(world.reference, world.manifest) == world.body


async def failure(world: QuirkyRegistry, address: str, **settings: Any) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await fetch(world, address, **settings)
    return caught.value


async def test_row_77_an_authority_without_key_identifiers_is_taken(made: Certificates) -> None:
    text = ssl._ssl._test_decode_cert(str(crt(made, "direct")))  # type: ignore[attr-defined]
    assert text["subjectAltName"]
    async with QuirkyRegistry() as world, tls(world, crt(made, "direct"), made.key("direct")) as address:
        await fetch(world, address, ca=(crt(made, "root"),))
    flags = tls_context(RegistryHost("https://a/v2")).verify_flags
    assert not flags & ssl.VERIFY_X509_STRICT


@pytest.mark.parametrize("anchor", ["root", "middle", "server"])
async def test_row_78_any_certificate_of_ca_is_an_anchor(made: Certificates, anchor: str) -> None:
    chain = (crt(made, "middle"),) if anchor == "root" else ()
    async with (
        QuirkyRegistry() as world,
        tls(world, crt(made, "server"), made.key("server"), chain=chain) as address,
    ):
        await fetch(world, address, ca=(crt(made, anchor),))


async def test_row_79_a_certificate_with_a_common_name_only_is_told_by_the_name(made: Certificates) -> None:
    """Python takes it for a DNS name; Go, and so containerd, refuses it. An address it is never taken for."""
    async with (
        QuirkyRegistry() as world,
        tls(world, crt(made, "127.0.0.1"), made.key("127.0.0.1")) as address,
    ):
        error = await failure(world, address, ca=(crt(made, "root"),))
        assert error.reason == "CertificateNotTrusted"


async def test_a_certificate_that_nobody_vouches_for_is_final_and_says_what_to_do(made: Certificates) -> None:
    async with QuirkyRegistry() as world, tls(world, crt(made, "direct"), made.key("direct")) as address:
        error = await failure(world, address)
        assert (error.reason, error.kind) == ("CertificateNotTrusted", ErrorKind.PERMANENT)
        assert "hosts.toml" in str(error)
        await fetch(world, address, skip_verify=True)


async def test_row_82_an_ipv6_host_is_read_and_asked(tmp_path: Path) -> None:
    async with QuirkyRegistry() as world:
        runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.1)

        async def answer(request: web.Request) -> web.StreamResponse:
            return world.good(request)

        runner.app.router.add_route("*", "/{path:.*}", answer)
        await runner.setup()
        try:
            await web.TCPSite(runner, "::1", 0).start()
        except OSError:
            await runner.cleanup()
            pytest.skip("this machine has no IPv6 loopback")
        port = runner.addresses[0][1]
        folder = tmp_path / "registry.example"
        folder.mkdir()
        (folder / "hosts.toml").write_text(f'[host."http://[::1]:{port}"]\n')
        hosts = HostsConfig([tmp_path]).lookup("registry.example")
        assert hosts[0].name == f"[::1]:{port}"
        async with world.client(hosts=tuple(hosts)) as client:
            assert await client.fetch_document(world.reference, world.manifest) == world.body
        await runner.cleanup()


async def test_row_83_a_doubled_v2_is_a_page_with_a_hint() -> None:
    def respond(request: web.Request) -> web.Response:
        return web.Response(status=404, text="<html>404 Not Found</html>", content_type="text/html")

    async with QuirkyRegistry() as world, serve(respond) as server:
        host = RegistryHost(f"{server.url}/v2/ns/v2")
        async with world.client(hosts=(host,)) as client:
            with pytest.raises(RegistryError, match="override_path"):
                await client.fetch_document(world.reference, world.manifest)
        assert server.asked == [f"GET /v2/ns/v2/team/app/manifests/{world.manifest.digest}"]


async def test_row_84_a_header_goes_to_its_host_and_not_where_that_sends_us() -> None:
    secret = "Basic c2VjcmV0OnNlY3JldA=="

    async with QuirkyRegistry() as world:

        def respond(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != secret:
                return web.Response(status=403, text=f"no: {request.headers.get('Authorization')} {secret}")
            if "/blobs/" in request.path:
                return world.to_store(request)
            response = world.good(request)
            assert isinstance(response, web.Response)
            return response

        async with serve(respond) as server:
            host = server.host(headers=(("authorization", secret), ("X-Team", "a, b")))
            async with world.client(hosts=(host,)) as client:
                await client.fetch_document(world.reference, world.manifest)
                await client.fetch_document(world.reference, world.config)
            assert {request.headers["X-Team"] for request in server.requests} == {"a, b"}
            for request in world.store.requests:
                assert not {"Authorization", "X-Team"} & request.headers.keys()
            async with world.client(hosts=(server.host(),)) as client:
                with pytest.raises(RegistryError) as caught:
                    await client.fetch_document(world.reference, world.manifest)
            assert "c2VjcmV0" not in str(caught.value) + repr(host)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_row_85_a_missing_client_certificate_is_called_so(
    made: Certificates, newest: ssl.TLSVersion
) -> None:
    root = crt(made, "root")
    world = QuirkyRegistry()
    with mutual_tls(world, crt(made, "direct"), made.key("direct"), client_ca=root, newest=newest) as address:
        error = await failure(world, address, ca=(root,))
        assert (error.reason, error.kind) == ("ClientCertificateWanted", ErrorKind.CREDENTIALS)
        assert "'client' in hosts.toml" in str(error)
        foreign = ((crt(made, "foreign"), made.key("foreign")),)
        error = await failure(world, address, ca=(root,), client=foreign)
        assert error.reason == "ClientCertificateWanted"
        await fetch(world, address, ca=(root,), client=((crt(made, "client"), made.key("client")),))
        await fetch(world, address, ca=(root,), client=((made.both("client"), None),))


async def test_row_85_where_the_server_only_hangs_up_a_certificate_is_thought_of(made: Certificates) -> None:
    root = crt(made, "root")
    world = QuirkyRegistry()
    with mutual_tls(world, crt(made, "direct"), made.key("direct"), client_ca=root, rude=True) as address:
        error = await failure(world, address, ca=(root,))
        assert error.reason in ("ConnectionLost", "ClientCertificateWanted")
        assert "'client' in hosts.toml" in str(error)


@pytest.mark.parametrize(
    "body", ["<center>No required SSL certificate was sent</center>", "The SSL certificate error"]
)
async def test_row_85_a_server_may_say_so_in_http(body: str) -> None:
    async with (
        QuirkyRegistry() as world,
        serve(lambda request: web.Response(status=400, text=body, content_type="text/html")) as server,
        world.client(hosts=(server.host(),)) as client,
    ):
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, world.manifest)
        assert (caught.value.reason, caught.value.kind) == ("ClientCertificateWanted", ErrorKind.CREDENTIALS)


# Files


def test_a_context_is_made_once_and_anew_when_a_file_changes(made: Certificates, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(crt(made, "root").read_bytes())
    contexts = TlsContexts()
    host = RegistryHost("https://a.example/v2", ca=(ca,))
    first = contexts.get(host)
    assert contexts.get(RegistryHost("https://b.example/v2", ca=(ca,))) is first
    assert contexts.get(RegistryHost("https://a.example/v2")) is not first
    replaced = tmp_path / "new.pem"
    replaced.write_bytes(crt(made, "other").read_bytes())
    replaced.rename(ca)
    assert contexts.get(host) is not first


async def test_a_rotated_authority_is_read_again(made: Certificates, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(crt(made, "other").read_bytes())
    async with QuirkyRegistry() as world, tls(world, crt(made, "direct"), made.key("direct")) as address:
        host = RegistryHost(f"https://{address}/v2", ca=(ca,))
        async with world.client(hosts=(host,), stall_timeout=5) as client:
            with pytest.raises(RegistryError, match="not trusted"):
                await client.fetch_document(world.reference, world.manifest)
            ca.write_bytes(crt(made, "root").read_bytes() + crt(made, "other").read_bytes())
            assert await client.fetch_document(world.reference, world.manifest) == world.body


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"ca": ("none.pem",)}, "CA file"),
        ({"ca": ("empty.pem",)}, "CA file"),
        ({"client": (("none.pem", None),)}, "client certificate"),
        ({"client": (("empty.pem", None),)}, "client certificate"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named_and_no_other_host_asked(
    settings: dict[str, Any], what: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    absolute: dict[str, Any] = {
        key: tuple(tmp_path / one if isinstance(one, str) else (tmp_path / one[0], None) for one in value)
        for key, value in settings.items()
    }
    async with QuirkyRegistry() as world:
        hosts = (replace(RegistryHost("https://127.0.0.1:1/v2"), **absolute), world.registry.host())
        async with world.client(hosts=hosts) as client:
            with pytest.raises(RegistryError, match=f"{what} {tmp_path}/.*pem") as caught:
                await client.fetch_document(world.reference, world.manifest)
        assert caught.value.reason == "InvalidHostsFile"
        assert world.registry.asked == []
