"""The registry client on Debian's docker-registry: anonymous, with a password, with TLS, behind a mirror.

One registry is pushed to; the others serve the same storage with other settings.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.manifest import check_layers, parse_config, parse_index, parse_manifest
from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference
from imageprepull.oci.selection import select
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import DockerConfig
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.hosts import HostsConfig
from tests.testbed.commands import wait_until
from tests.testbed.daemon import DockerRegistry, spawn
from tests.testbed.images import BuiltImage, LayerSpec, build_image, build_index, push

REPOSITORY = f"registry-client/{uuid.uuid4().hex[:8]}"
CONTENT = bytes(range(256)) * 4000
# bcrypt of "wonderland", at the lowest cost
HTPASSWD = "alice:$2y$05$abcdefghijklmnopqrstuuA0vov2GDneHB3.8.cv9UF9g.RdvScIW\n"

Start = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def image(registry: DockerRegistry) -> BuiltImage:
    """Pushed under the tag `1`, and in an index under `index`."""
    plain = LayerSpec({"data": CONTENT}, compression="plain")
    built = build_image([plain, LayerSpec({"more": b"x" * 1000})])
    push(built, registry.url, REPOSITORY, "1")
    push(build_index([built]), registry.url, REPOSITORY, "index")
    return built


@pytest.fixture
def start(registry: DockerRegistry, image: BuiltImage, tmp_path: Path) -> Iterator[Start]:
    """Start a registry with more settings over the same storage; gives its host and port."""
    processes: list[subprocess.Popen[bytes]] = []

    def started(settings: dict[str, Any]) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        storage = {"filesystem": {"rootdirectory": str(registry.folder / "registry")}}
        config = {"version": "0.1", "log": {"level": "warn"}, "storage": storage, **settings}
        config["http"] = {"addr": f"127.0.0.1:{port}", **settings.get("http", {})}
        path = tmp_path / f"registry-{port}.json"
        path.write_text(json.dumps(config))
        log = path.with_suffix(".log")
        process = spawn(["/usr/bin/docker-registry", "serve", path], log)
        processes.append(process)

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_until("docker-registry", "listens", listens, timeout=20, log=log)
        return f"127.0.0.1:{port}"

    yield started
    for process in processes:
        process.kill()
        process.wait(10)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that its own key signed, and the key."""
    paths = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return paths


def hosts_toml(root: Path, registry: str, text: str) -> HostsConfig:
    folder = root / "certs.d" / f"{registry.replace(':', '_')}_"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(text)
    return HostsConfig([root / "certs.d"])


def named(host: str, tag: str = "1") -> Reference:
    return Reference.parse(f"{host}/{REPOSITORY}:{tag}")


def client(hosts: HostsConfig | None = None, credentials: DockerConfig | None = None) -> RegistryClient:
    return RegistryClient(
        hosts or HostsConfig(()), credentials, stall_timeout=10, connect_timeout=5, attempts=1
    )


async def read(
    registry: RegistryClient,
    reference: Reference,
    blob: Descriptor,
    offset: int = 0,
    length: int | None = None,
) -> bytes:
    async with registry.open_blob(reference, blob, offset, length=length) as stream:
        assert stream.offset == offset
        return b"".join([chunk async for chunk in stream])


async def fetch_all(registry: RegistryClient, reference: Reference, image: BuiltImage) -> None:
    """What a pull asks for, compared with what was pushed."""
    found = await registry.resolve(reference)
    assert (found.digest, found.size) == (image.manifest.digest, image.manifest.size)
    data = await registry.fetch_document(reference, found)
    assert data == image.manifest.read()
    manifest = parse_manifest(data)
    check_layers(manifest, parse_config(await registry.fetch_document(reference, manifest.config)))
    for layer, built in zip(manifest.layers, image.layers, strict=True):
        assert await read(registry, reference, layer) == built.blob.read()


async def failure(registry: RegistryClient, host: str, tag: str = "1") -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await registry.resolve(named(host, tag))
    return caught.value


async def test_an_image_is_fetched_anonymously(registry: DockerRegistry, image: BuiltImage) -> None:
    async with client() as asked:
        await fetch_all(asked, named(registry.host), image)
        by_digest = Reference.parse(f"{registry.host}/{REPOSITORY}@{image.manifest.digest}")
        await fetch_all(asked, by_digest, image)


async def test_an_index_is_followed(registry: DockerRegistry, image: BuiltImage) -> None:
    reference = named(registry.host, "index")
    async with client() as asked:
        found = await asked.resolve(reference)
        assert found.is_index
        index = parse_index(await asked.fetch_document(reference, found))
        chosen = select(index.manifests, Platform.parse("linux/amd64"))
        assert chosen.digest == image.manifest.digest


async def test_parts_of_a_blob_are_fetched(registry: DockerRegistry, image: BuiltImage) -> None:
    reference = named(registry.host)
    async with client() as asked:
        manifest = parse_manifest(await asked.fetch_document(reference, await asked.resolve(reference)))
        layer = manifest.layers[0]
        whole = await read(asked, reference, layer)
        assert await read(asked, reference, layer, 700_001) == whole[700_001:]
        assert await read(asked, reference, layer, 5, 300_000) == whole[5:300_005]


async def test_what_is_missing_is_final(registry: DockerRegistry, image: BuiltImage) -> None:
    async with client() as asked:
        error = await failure(asked, registry.host, "missing")
        assert (error.kind, error.reason, error.status) == (ErrorKind.PERMANENT, "NotFound", 404)
        reference = named(registry.host)
        with pytest.raises(RegistryError, match="BLOB_UNKNOWN") as caught:
            await read(asked, reference, Descriptor("x", "sha256:" + "0" * 64, 5))
        assert caught.value.reason == "NotFound"


async def test_a_password_opens_a_registry_that_wants_one(
    start: Start, image: BuiltImage, tmp_path: Path
) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    host = start({"auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}})

    def config(password: str) -> DockerConfig:
        auths = {host: {"username": "alice", "password": password}}
        return DockerConfig.parse(json.dumps({"auths": auths}).encode())

    async with client(credentials=config("wonderland")) as asked:
        await fetch_all(asked, named(host), image)
    async with client(credentials=config("looking-glass")) as asked:
        error = await failure(asked, host)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "CredentialsRejected")
        assert "looking-glass" not in str(error)
    async with client() as asked:
        error = await failure(asked, host)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "DeniedOrMissing")


async def test_a_certificate_is_trusted_by_the_ca_of_hosts_toml(
    start: Start, image: BuiltImage, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    host = start({"http": {"tls": {"certificate": str(certificate[0]), "key": str(certificate[1])}}})
    server = f'server = "https://{host}"\n'
    async with client(hosts_toml(tmp_path / "1", host, f'{server}ca = "{certificate[0]}"')) as asked:
        await fetch_all(asked, named(host), image)
    async with client(hosts_toml(tmp_path / "2", host, f"{server}skip_verify = true")) as asked:
        await fetch_all(asked, named(host), image)
    async with client(hosts_toml(tmp_path / "3", host, server)) as asked:
        error = await failure(asked, host)
        assert (error.kind, error.reason) == (ErrorKind.PERMANENT, "CertificateNotTrusted")
        assert "hosts.toml" in str(error)
    async with client() as asked:  # on loopback TLS is tried first, whoever signed
        await fetch_all(asked, named(host), image)


async def test_plain_http_that_should_be_tls_is_named_so(
    registry: DockerRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    async with client(hosts_toml(tmp_path, registry.host, f'server = "https://{registry.host}"')) as asked:
        assert (await failure(asked, registry.host)).reason == "NotTLS"


async def test_a_mirror_is_used_and_not_needed(
    registry: DockerRegistry, start: Start, image: BuiltImage, tmp_path: Path
) -> None:
    mirror = start({})
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gone = f"127.0.0.1:{probe.getsockname()[1]}"
    text = f'server = "http://{registry.host}"\n[host."http://{gone}"]\n[host."http://{mirror}"]\n'
    hosts = hosts_toml(tmp_path, registry.host, text)
    async with client(hosts) as asked:
        await fetch_all(asked, named(registry.host), image)
        reference = named(registry.host)
        manifest = parse_manifest(await asked.fetch_document(reference, await asked.resolve(reference)))
        async with asked.open_blob(reference, manifest.layers[0]) as stream:
            assert (stream.host, stream.origin) == (mirror, mirror)
        # By now the mirror at which nobody answers is left alone for a while.
        error = await failure(asked, registry.host, "missing")
        assert error.host == registry.host
        assert f"before that {mirror} NotFound" in str(error)
    async with client(hosts) as asked:
        error = await failure(asked, registry.host, "missing")
        assert f"{gone} RegistryUnreachable, {mirror} NotFound" in str(error)
