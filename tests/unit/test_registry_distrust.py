"""A registry whose object store serves wrong bytes: the download blames the registry and turns to the next."""

from __future__ import annotations

import random
from pathlib import Path

from aiohttp import web

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Spool, Wanted
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.settings import PullSettings
from imageprepull.registry.client import RegistryClient
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
            keep_partial=False,
            advanced=lambda held: None,
            received=lambda host, count: received.append(host),
        )
        async with spool.blob(wanted) as path:
            assert path.read_bytes() == BODY
        assert len(mirror.requests) == len(store.requests) == len(upstream.requests) == 1
        assert {store.address, upstream.address} <= set(received), "bytes are counted where they came from"
