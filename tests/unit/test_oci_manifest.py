"""Documents of images: read, or refused with a reason; never another error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
)
from imageprepull.oci.manifest import (
    MAX_LAYERS,
    Config,
    InvalidManifest,
    Manifest,
    check_layers,
    document_kind,
    parse_config,
    parse_index,
    parse_manifest,
)
from imageprepull.oci.platform import Platform

CONFIG = {"mediaType": OCI_CONFIG, "digest": "sha256:" + "c" * 64, "size": 10}
LAYER = {"mediaType": OCI_LAYER + "+gzip", "digest": "sha256:" + "1" * 64, "size": 20}
IMAGE = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
ENTRY = {
    "mediaType": OCI_MANIFEST,
    "digest": "sha256:" + "e" * 64,
    "size": 30,
    "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1", "os.features": ["x"]},
    "annotations": {"a": "b"},
}  # fmt: skip
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]}


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


def reason(parse: Callable[[bytes], object], document: object) -> str:
    with pytest.raises(InvalidManifest) as caught:
        parse(document if isinstance(document, bytes) else encode(document))
    assert str(caught.value)
    assert isinstance(caught.value, ValueError)
    return caught.value.reason


def test_an_index_is_read() -> None:
    platform = Platform("linux", "arm", "v7", "1", ("x",))
    expected = Descriptor(OCI_MANIFEST, "sha256:" + "e" * 64, 30, platform, {"a": "b"})
    assert parse_index(encode(INDEX)).manifests == (expected,)
    assert parse_index(encode(INDEX)).manifests[0].annotations == {"a": "b"}


def test_an_index_may_be_empty_and_hold_anything() -> None:
    assert parse_index(encode(INDEX | {"manifests": []})).manifests == ()
    other = {"mediaType": "application/x", "digest": "sha256:" + "f" * 64, "size": 0}
    assert parse_index(encode(INDEX | {"manifests": [other]})).manifests[0].platform is None


@pytest.mark.parametrize(
    ("manifest", "config"), [(OCI_MANIFEST, OCI_CONFIG), (DOCKER_MANIFEST, DOCKER_CONFIG)]
)
def test_a_manifest_is_read(manifest: str, config: str) -> None:
    found = parse_manifest(encode(IMAGE | {"mediaType": manifest, "config": CONFIG | {"mediaType": config}}))
    assert found.media_type == manifest
    assert found.config == Descriptor(config, "sha256:" + "c" * 64, 10)
    assert found.layers == (Descriptor(OCI_LAYER + "+gzip", "sha256:" + "1" * 64, 20),)


def test_an_image_may_have_no_layers() -> None:
    assert parse_manifest(encode(IMAGE | {"layers": []})).layers == ()


@pytest.mark.parametrize(
    ("document", "header", "kind"),
    [
        (IMAGE, "", OCI_MANIFEST),
        (IMAGE, "text/plain; charset=utf-8", OCI_MANIFEST),
        (IMAGE, OCI_MANIFEST + "; charset=utf-8", OCI_MANIFEST),
        (without(IMAGE, "mediaType"), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (without(IMAGE, "mediaType"), "application/octet-stream", OCI_MANIFEST),
        (INDEX, "", OCI_INDEX),
        (INDEX | {"mediaType": DOCKER_INDEX}, DOCKER_INDEX, DOCKER_INDEX),
        (without(INDEX, "mediaType"), "", OCI_INDEX),
        (without(INDEX, "mediaType"), DOCKER_INDEX, DOCKER_INDEX),
        (IMAGE | {"manifests": None}, "", OCI_MANIFEST),
        (INDEX | {"layers": []}, "", OCI_INDEX),
    ],
)
def test_the_kind_is_what_the_body_says_and_is(document: object, header: str, kind: str) -> None:
    assert document_kind(encode(document), header) == kind


@pytest.mark.parametrize(
    "document",
    [
        IMAGE | {"manifests": [ENTRY]},
        INDEX | {"layers": [LAYER]},
        INDEX | {"config": CONFIG},
        INDEX | {"mediaType": OCI_MANIFEST},
        IMAGE | {"mediaType": OCI_INDEX},
        IMAGE | {"Layers": [LAYER]},
        IMAGE | {"MANIFESTS": []},
        INDEX | {"mediatype": OCI_MANIFEST},
    ],
)
def test_a_document_that_two_readers_could_take_for_two_images_is_refused(document: object) -> None:
    """CVE-2021-41190, and Go's case-insensitive keys."""
    for parse in (document_kind, parse_index, parse_manifest):
        assert reason(parse, document) == "AmbiguousManifest"


def test_a_header_that_contradicts_the_body_is_refused() -> None:
    assert (
        reason(lambda data: document_kind(data, OCI_INDEX), without(IMAGE, "mediaType"))
        == "AmbiguousManifest"
    )
    assert reason(lambda data: document_kind(data, DOCKER_MANIFEST), INDEX) == "AmbiguousManifest"
    assert reason(parse_index, IMAGE) == "AmbiguousManifest"
    assert reason(parse_manifest, INDEX) == "AmbiguousManifest"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (IMAGE | {"config": CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "NotAnImage"),
        (IMAGE | {"config": without(CONFIG, "mediaType")}, "NotAnImage"),
        (IMAGE | {"layers": [LAYER | {"mediaType": "application/x"}]}, "UnsupportedLayer"),
        (IMAGE | {"layers": [LAYER | {"mediaType": OCI_LAYER + "+encrypted"}]}, "UnsupportedLayer"),
        (IMAGE | {"layers": [LAYER | {"digest": "sha512:" + "1" * 128}]}, "InvalidDigest"),
        (IMAGE | {"layers": [LAYER | {"digest": "../../etc"}]}, "InvalidDigest"),
        (IMAGE | {"layers": [LAYER | {"size": -1}]}, "MalformedDocument"),
        (IMAGE | {"layers": [LAYER | {"size": 1.5}]}, "MalformedDocument"),
        (IMAGE | {"layers": [LAYER | {"size": "1"}]}, "MalformedDocument"),
        (IMAGE | {"layers": [without(LAYER, "size")]}, "MalformedDocument"),
        (IMAGE | {"layers": [None]}, "MalformedDocument"),
        (IMAGE | {"layers": {"0": LAYER}}, "MalformedDocument"),
        (without(IMAGE, "config"), "MalformedDocument"),
        (IMAGE | {"mediaType": 7}, "MalformedDocument"),
        (IMAGE | {"mediaType": "application/vnd.example+json"}, "UnsupportedManifest"),
        (IMAGE | {"fsLayers": [1]}, "UnsupportedManifest"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}, "UnsupportedManifest"),
        ({}, "MalformedDocument"),
        ([], "MalformedDocument"),
        (b"", "MalformedDocument"),
        (b"<html>", "MalformedDocument"),
        (b"\xff\xfe", "MalformedDocument"),
        (b'{"layers":' + b"[" * 100_000, "MalformedDocument"),
        (b'{"layers":[1],"config":"\xff"}', "MalformedDocument"),
        (encode(IMAGE) + b"x", "MalformedDocument"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(document: object, expected: str) -> None:
    assert reason(parse_manifest, document) == expected


def test_an_image_has_no_more_layers_than_linux_can_mount() -> None:
    assert len(parse_manifest(encode(IMAGE | {"layers": [LAYER] * MAX_LAYERS})).layers) == MAX_LAYERS == 500
    too_many = IMAGE | {"layers": [LAYER] * 501}
    assert reason(parse_manifest, too_many) == "TooManyLayers"
    with pytest.raises(InvalidManifest, match="501 layers; Linux mounts at most 500"):
        parse_manifest(encode(too_many))


def test_a_config_is_read() -> None:
    document = {
        "os": "linux", "architecture": "arm64", "variant": "v8", "history": [{"x": 1}],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]},
    }  # fmt: skip
    assert parse_config(encode(document)) == Config(Platform("linux", "arm64"), ("sha256:" + "a" * 64,))
    assert parse_config(encode({"rootfs": {"diff_ids": None}})).diff_ids == ()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "NotAnImage"),
        ({"name": "chart"}, "NotAnImage"),
        ({"rootfs": None}, "NotAnImage"),
        ({"rootfs": {"type": "other"}}, "NotAnImage"),
        ({"rootfs": {"diff_ids": ["sha256:x"]}}, "InvalidDigest"),
        ({"rootfs": {"diff_ids": [1]}}, "MalformedDocument"),
        ({"os": 1}, "MalformedDocument"),
        (b"\x1f\x8b", "MalformedDocument"),
    ],
)
def test_what_is_no_config_is_refused_with_the_reason(document: object, expected: str) -> None:
    assert reason(parse_config, document) == expected


@pytest.mark.parametrize(("layers", "diff_ids"), [(0, 1), (1, 0), (2, 3), (3, 2)])
def test_every_layer_has_a_diff_id(layers: int, diff_ids: int) -> None:
    layer = Descriptor(DOCKER_LAYER, "sha256:" + "1" * 64, 1)
    manifest = Manifest(OCI_MANIFEST, layer, (layer,) * layers)
    config = Config(Platform("linux", "amd64"), ("sha256:" + "2" * 64,) * diff_ids)
    with pytest.raises(InvalidManifest, match=f"{layers} layers and the config {diff_ids}") as caught:
        check_layers(manifest, config)
    assert caught.value.reason == "LayerCountMismatch"
    check_layers(manifest, Config(config.platform, ("sha256:" + "2" * 64,) * layers))


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
KEYS = [
    "mediaType",
    "manifests",
    "config",
    "layers",
    "rootfs",
    "os",
    "architecture",
    "variant",
    "fsLayers",
    "MediaType",
]
documents = st.builds(
    lambda base, changes: base | changes,
    st.sampled_from([{}, IMAGE, INDEX, {"rootfs": {"type": "layers", "diff_ids": []}}]),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=3),
)


def only_refuses(data: bytes, header: str) -> None:
    for parse in (parse_index, parse_manifest, parse_config, lambda raw: document_kind(raw, header)):
        try:
            parse(data)
        except InvalidManifest as error:
            refusal = error
        else:
            continue
        assert refusal.reason.isidentifier()
        assert len(str(refusal)) < 2000


@given(documents, st.text(max_size=20))
def test_a_damaged_document_is_read_or_refused(document: dict[str, object], header: str) -> None:
    only_refuses(encode(document), header)


@given(st.one_of(st.binary(max_size=60), st.text(alphabet='{}[]":,0e\\u', max_size=40).map(str.encode)))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    only_refuses(data, "")
