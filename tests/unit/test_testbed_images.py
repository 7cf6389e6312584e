"""The images that tests are made with: right by the standard library's own readers, and the same each time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.testbed.images import (
    Entry,
    LayerSpec,
    build_image,
    build_index,
    build_layer,
    executable,
    symlink,
)

FILES: dict[str, bytes | Entry] = {
    "usr/bin/tool": executable(b"#!"),
    "usr/bin/alias": symlink("tool"),
    "etc/.wh.gone": b"",
}


def unpack(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    if compression == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_layer_is_what_its_digests_say(compression: str) -> None:
    layer = build_layer(LayerSpec(FILES, compression))
    data = layer.blob.read()
    tar = unpack(data, compression)
    assert layer.blob.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert layer.blob.size == len(data)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
        assert archive.getmember("usr/bin/tool").mode == 0o755
        assert archive.getmember("usr/bin/alias").linkname == "tool"
    assert names == ["usr", "usr/bin", "usr/bin/tool", "usr/bin/alias", "etc", "etc/.wh.gone"]


def test_layer_in_a_file_is_the_layer_in_memory(tmp_path: Path) -> None:
    source, spool = tmp_path / "source", tmp_path / "spool"
    for folder in (source / "sub", spool):
        folder.mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"content" * 10_000)
    spec = LayerSpec(directory=source)
    in_file, in_memory = build_layer(spec, spool), build_layer(spec)
    assert isinstance(in_file.blob.source, Path)
    assert in_file.blob.source.read_bytes() == in_memory.blob.read()
    assert in_file.diff_id == in_memory.diff_id


def test_same_image_only_on_request() -> None:
    layer = build_layer(LayerSpec(FILES))
    assert build_image([layer]).digest != build_image([layer]).digest
    assert build_image([layer], unique="a").digest == build_image([layer], unique="a").digest


def test_config_keeps_what_runs_beside_the_label() -> None:
    image = build_image([LayerSpec(FILES)], config_extra={"config": {"Cmd": ["/usr/bin/tool"]}}, unique="a")
    config = json.loads(image.config.read())
    assert config["config"] == {"Cmd": ["/usr/bin/tool"], "Labels": {"imageprepull.test/unique": "a"}}
    assert config["rootfs"]["diff_ids"] == image.diff_ids


def test_index_has_a_platform_for_each_image() -> None:
    images = [
        build_image([LayerSpec(FILES)], architecture="arm", variant=variant) for variant in ("v6", "v7")
    ]
    index = json.loads(build_index(images).index.read())
    assert [entry["digest"] for entry in index["manifests"]] == [image.digest for image in images]
    assert [entry["platform"]["variant"] for entry in index["manifests"]] == ["v6", "v7"]
