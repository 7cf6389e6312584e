"""What registries serve as manifests and indexes, row by row (A3), against the fault-injecting registry."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

import tests.testbed.faulty_registry_manifests  # noqa: F401 - registers the switches
from imageprepull.oci.descriptor import OCI_FOREIGN_LAYER, OCI_INDEX, OCI_MANIFEST, Descriptor
from imageprepull.oci.digests import InvalidDigest, check_digest
from imageprepull.oci.manifest import InvalidManifest, parse_index, parse_manifest
from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference
from imageprepull.oci.selection import select
from imageprepull.registry.errors import ErrorKind, RegistryError
from tests.testbed.faulty_registry_quirks import Held, QuirkyRegistry, entry


async def resolve(world: QuirkyRegistry, **settings: Any) -> Descriptor:
    async with world.client(**settings) as client:
        return await client.resolve(world.reference)


async def test_row_34_without_a_digest_the_body_is_hashed() -> None:
    async with QuirkyRegistry(34) as world:
        assert await resolve(world) == world.manifest


@pytest.mark.parametrize("variant", ["none", "zero"])
async def test_row_35_a_head_without_a_length_is_no_size(variant: str) -> None:
    async with QuirkyRegistry(35, variant) as world:
        assert await resolve(world) == world.manifest


async def test_row_36_a_head_that_names_another_form_is_not_believed_again() -> None:
    async with QuirkyRegistry(36) as world, world.client() as client:
        lie = await client.resolve(world.reference)
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, lie)
        assert caught.value.retryable, "resolved again it is found"
        truth = await client.resolve(world.reference)
        assert truth == world.manifest
        world.notes.pop("other")
        assert await client.fetch_document(world.reference, truth) == world.body


@pytest.mark.parametrize("number", [37, 38])
@pytest.mark.parametrize(
    "content_type", ["text/plain; charset=utf-8", "", "application/json", "application/octet-stream"]
)
async def test_row_37_38_a_document_is_what_its_body_says(number: int, content_type: str) -> None:
    async with QuirkyRegistry(number, content_type) as world, world.client() as client:
        assert await client.resolve(world.reference) == world.manifest
        assert await client.fetch_document(world.reference, world.manifest) == world.body


@pytest.mark.parametrize("variant", ["plain", "chunked"])
async def test_row_39_a_page_instead_of_an_answer_is_named_and_shown(variant: str) -> None:
    async with QuirkyRegistry(39, variant) as world, world.client() as client:
        blob = client.open_blob(world.reference, world.blob)
        for ask in (
            client.resolve(world.reference),
            client.fetch_document(world.reference, world.manifest),
            blob.__aenter__(),
        ):
            with pytest.raises(RegistryError) as caught:
                await ask
            assert caught.value.reason == "NotARegistryAnswer"
            assert "Sign in" in str(caught.value)
            assert world.registry.address in str(caught.value)
            assert "/v2/team/app/" in str(caught.value)


async def test_row_40_manifests_are_not_asked_for_as_blobs() -> None:
    async with QuirkyRegistry(40) as world, world.client() as client:
        await client.fetch_document(world.reference, await client.resolve(world.reference))
        assert world.seen["asked"] == 0


@pytest.mark.parametrize(
    ("document", "content_type", "expected"),
    [
        ({"manifests": [{"a": 1}]}, "application/json", OCI_INDEX),
        ({"manifests": [{"a": 1}]}, OCI_INDEX, OCI_INDEX),
        ({"config": {"a": 1}, "layers": [1]}, "text/plain", OCI_MANIFEST),
        ({"config": {"a": 1}, "layers": [1], "manifests": [1]}, OCI_INDEX, "AmbiguousManifest"),
    ],
)
async def test_row_41_without_a_media_type_the_shape_decides(
    document: dict[str, Any], content_type: str, expected: str
) -> None:
    async with QuirkyRegistry(41, (json.dumps(document).encode(), content_type)) as world:
        if expected == "AmbiguousManifest":
            with pytest.raises(InvalidManifest) as caught:
                await resolve(world)
            assert caught.value.reason == expected
        else:
            assert (await resolve(world)).media_type == expected


async def test_row_42_a_missing_child_is_final_and_named_with_its_platform() -> None:
    async with QuirkyRegistry(42) as world, world.client(attempts=3) as client:
        child = replace(world.manifest, platform=Platform("linux", "arm64", "", "", ()))
        with pytest.raises(RegistryError) as caught:
            await client.fetch_document(world.reference, child)
        error = caught.value
        assert (error.reason, error.kind) == ("MissingManifest", ErrorKind.PERMANENT)
        assert child.digest in str(error)
        assert "linux/arm64" in str(error)
        assert len(world.registry.asked) == 1


async def test_row_43_only_entries_with_a_whole_platform_are_chosen() -> None:
    async with QuirkyRegistry(43) as world:
        good = entry(world.manifest, platform={"os": "linux", "architecture": "amd64"})
        odd = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "b" * 64, "size": 2}
        index = world.add_index(
            {**odd, "platform": {"os": "unknown", "architecture": "unknown"}},
            {**odd, "platform": {"os": "linux", "architecture": ""}},
            good,
        )
        async with world.client() as client:
            body = await client.fetch_document(world.reference, index)
        chosen = select(parse_index(body).manifests, Platform("linux", "amd64", "", "", ()))
        assert chosen.digest == world.manifest.digest


@pytest.mark.parametrize(
    "config", ["application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.model.config.v1+json"]
)
async def test_row_44_an_artifact_is_no_image_and_named_by_its_config(config: str) -> None:
    async with QuirkyRegistry(44) as world:
        body = json.dumps(
            {"mediaType": OCI_MANIFEST, "config": {**entry(world.config), "mediaType": config}, "layers": []}
        ).encode()
        chart = world.add_document(OCI_MANIFEST, body, "1")
        async with world.client() as client:
            found = await client.fetch_document(world.reference, chart)
        with pytest.raises(InvalidManifest, match=re.escape(config)) as caught:
            parse_manifest(found)
        assert caught.value.reason == "NotAnImage"


async def test_row_45_other_digests_are_refused_early_and_never_trusted() -> None:
    async with QuirkyRegistry(45) as world:
        assert await resolve(world) == world.manifest
    with pytest.raises(InvalidDigest, match="only sha256"):
        check_digest("sha512:" + "a" * 128)
    with pytest.raises(ValueError, match="only sha256"):
        Reference.parse("registry.example/a@sha512:" + "a" * 128)


async def test_row_46_a_huge_index_is_cut_off_by_name() -> None:
    async with QuirkyRegistry(46) as world:
        with pytest.raises(RegistryError) as caught:
            await resolve(world)
        assert caught.value.reason == "DocumentTooLarge"


async def test_row_47_unknown_fields_pass_and_unknown_layers_do_not() -> None:
    async with QuirkyRegistry(47) as world:
        document = json.loads(world.body) | {"artifactType": "a/b", "subject": {"x": 1}, "new": [1]}
        more = world.add_document(OCI_MANIFEST, json.dumps(document).encode(), "1")
        async with world.client() as client:
            body = await client.fetch_document(world.reference, more)
        assert parse_manifest(body).layers[0].digest == world.blob.digest
        document["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+lz4"
        with pytest.raises(InvalidManifest) as caught:
            parse_manifest(json.dumps(document).encode())
        assert caught.value.reason == "UnsupportedLayer"


async def read(world: QuirkyRegistry, foreign: Descriptor, **settings: Any) -> tuple[bytes, str]:
    held = Held()
    async with (
        world.client(held=held, **settings) as client,
        client.open_blob(world.reference, foreign, 1000, length=5000) as stream,
    ):
        assert stream.offset == 1000
        return b"".join([part async for part in stream]), stream.origin


def foreign_layer(world: QuirkyRegistry, *urls: str) -> Descriptor:
    return replace(world.blob, media_type=OCI_FOREIGN_LAYER, urls=urls)


async def test_row_48_the_registry_is_asked_first_for_a_foreign_layer() -> None:
    async with QuirkyRegistry(48, variant=True) as world:
        layer = foreign_layer(world, f"{world.store.url}/store/{world.blob.digest}")
        assert await read(world, layer) == (world.layer[1000:6000], world.registry.address)
        assert world.seen["store"] == 0


async def test_row_48_a_foreign_layer_comes_from_its_url_last_and_without_credentials() -> None:
    async with QuirkyRegistry(48, variant=False) as world:
        urls = (
            "http://h:99999/x",
            "http://a..b/x",
            f"{world.store.url}/none",
            f"{world.store.url}/store/{world.blob.digest}",
        )
        host = world.registry.host(headers=(("X-Secret", "1"),))
        assert await read(world, foreign_layer(world, *urls), hosts=(host,)) == (
            world.layer[1000:6000],
            world.store.address,
        )
        assert not {"Authorization", "X-Secret"} & world.notes["headers"].keys()
        assert world.seen["registry"] == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/x", "InvalidAddress"),
        ("http://h:99999/x", "InvalidAddress"),
        ("http://xn--/x", "InvalidAddress"),
        ("http://u:p@127.0.0.1/x", "InvalidAddress"),
        ("http://a..b/x", "RedirectRefused"),
        ("http://[64:ff9b::a9fe:a9fe]/x", "RedirectRefused"),
    ],
)
async def test_row_48_a_url_that_is_none_leaves_the_registrys_answer(url: str, reason: str) -> None:
    async with QuirkyRegistry(48, variant=False) as world:
        with pytest.raises(RegistryError) as caught:
            await read(world, foreign_layer(world, url))
        assert caught.value.reason == "NotFound"
        assert [error.reason for error in caught.value.others] == [reason]


async def test_row_48_an_unreachable_url_does_not_hold_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageprepull.registry.asking.OUTSIDE_DIAL", 0.1)
    async with QuirkyRegistry(48, variant=False) as world:
        # An address that drops what is sent to it; the registry is on loopback and may name it.
        layer = foreign_layer(world, "http://192.0.2.1/x", "http://169.254.169.254/x")
        started = time.monotonic()
        with pytest.raises(RegistryError) as caught:
            await read(world, layer)
        assert time.monotonic() - started < 5
        assert caught.value.reason == "NotFound", "what the registry said counts"
        assert [error.reason for error in caught.value.others][-1] == "RedirectRefused"


@pytest.mark.parametrize(
    ("document", "reason", "advice"),
    [
        ({"schemaVersion": 1, "fsLayers": [1]}, "UnsupportedManifest", "push the image again"),
        ({"config": {"mediaType": "application/octet-stream", "digest": "sha256:" + "a" * 64, "size": 1},
          "layers": []}, "NotAnImage", "pushed again"),
    ],
)  # fmt: skip
async def test_row_49_old_images_are_refused_with_what_to_do(
    document: dict[str, Any], reason: str, advice: str
) -> None:
    body = json.dumps(document).encode()
    async with QuirkyRegistry(49, (body, "application/json")) as world:

        async def ask() -> None:
            await resolve(world)
            parse_manifest(body)

        with pytest.raises(InvalidManifest, match=advice) as caught:
            await ask()
        assert caught.value.reason == reason


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_row_50_what_a_mirror_lacks_is_asked_elsewhere_and_remembered(status: int) -> None:
    async with QuirkyRegistry(50, status) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts) as client:
            for _ in range(3):
                async with client.open_blob(world.reference, world.blob, 0, length=1000) as stream:
                    assert stream.origin == world.registry.address
            assert len(mirror.registry.asked) == 1
            await client.fetch_document(world.reference, world.config)
            assert len(mirror.registry.asked) == 2, "of another blob it says nothing"
