"""A registry whose object store serves wrong bytes: the download blames the registry and turns to the next."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from aiohttp import web

from imageprepull.oci.descriptor import OCI_LAYER, OCI_MANIFEST, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Spool, Wanted
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.settings import PullSettings
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import RegistryError
from tests.testbed.registry_server import FixedHosts, serve

BODY = random.Random(3).randbytes(500_000)
BLOB = Descriptor(OCI_LAYER, sha256_digest(BODY), len(BODY))


async def test_wrong_bytes_from_behind_a_redirect_are_asked_for_elsewhere(tmp_path: Path) -> None:
    async with (
        serve(lambda request: web.Response(body=bytes(len(BODY)))) as store,
        serve(lambda request: web.Response(status=307, headers={"Location": f"{store.url}/x"})) as mirror,
        serve(lambda request: web.Response(body=BODY)) as upstream,
        RegistryClient(FixedHosts(mirror.host(is_proxy=True), upstream.host())) as client,
    ):
        spool = Spool(client, tmp_path / "spool", Limiter(2), PullSettings(backoff_base=0.001), "boot")
        received: list[str] = []
        wanted = Wanted(
            reference=Reference.parse("registry.example/a/b:1"),
            descriptor=BLOB,
            lease="lease",
            priority=0,
            owner="",
            advanced=lambda held: None,
            received=lambda host, count: received.append(host),
        )
        async with spool.blob(wanted) as path:
            assert path.read_bytes() == BODY
        assert len(mirror.requests) == len(store.requests) == len(upstream.requests) == 1
        assert {store.address, upstream.address} <= set(received), "bytes are counted where they came from"


async def test_row_59_every_host_is_tried_before_the_blob_is_called_corrupt(tmp_path: Path) -> None:
    wrong = bytes(len(BODY))
    async with (
        serve(lambda request: web.Response(body=wrong)) as first,
        serve(lambda request: web.Response(body=wrong)) as second,
        serve(lambda request: web.Response(body=wrong)) as upstream,
        RegistryClient(
            FixedHosts(first.host(is_proxy=True), second.host(is_proxy=True), upstream.host())
        ) as client,
    ):
        with pytest.raises(PullError) as caught:
            await fetch(client, tmp_path)
        assert (caught.value.reason, caught.value.permanent) == ("CorruptUpstream", True)
        assert [len(one.requests) for one in (first, second, upstream)] == [1, 1, 1]
        for one in (first, second, upstream):
            assert one.address in caught.value.message


async def test_row_59_a_mirror_that_lacks_the_blob_is_not_waited_for(tmp_path: Path) -> None:
    async with (
        serve(lambda request: web.Response(status=404)) as mirror,
        serve(lambda request: web.Response(body=bytes(len(BODY)))) as upstream,
        RegistryClient(FixedHosts(mirror.host(is_proxy=True), upstream.host())) as client,
    ):
        with pytest.raises(PullError) as caught:
            await fetch(client, tmp_path)
        assert (caught.value.reason, caught.value.permanent) == ("CorruptUpstream", True)
        assert len(upstream.requests) == 2


@pytest.mark.parametrize(("upstream_body", "reason"), [(b"{}", "CorruptUpstream"), (None, "NotFound")])
async def test_row_59_a_document_is_corrupt_only_when_every_host_says_something_else(
    upstream_body: bytes | None, reason: str
) -> None:
    document = Descriptor(OCI_MANIFEST, sha256_digest(b"[]"), 2)
    async with (
        serve(lambda request: web.Response(body=b"{}")) as mirror,
        serve(
            lambda request: web.Response(body=upstream_body) if upstream_body else web.Response(status=404)
        ) as upstream,
        RegistryClient(FixedHosts(mirror.host(is_proxy=True), upstream.host())) as client,
    ):
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(Reference.parse("registry.example/a/b:1"), document)
        assert caught.value.reason == reason
        assert not caught.value.retryable


async def fetch(client: RegistryClient, folder: Path) -> bytes:
    spool = Spool(client, folder / "spool", Limiter(2), PullSettings(backoff_base=0.001), "boot")
    wanted = Wanted(
        reference=Reference.parse("registry.example/a/b:1"),
        descriptor=BLOB,
        lease="lease",
        priority=0,
        owner="",
        advanced=lambda held: None,
        received=lambda host, count: None,
    )
    async with spool.blob(wanted) as path:
        return path.read_bytes()
