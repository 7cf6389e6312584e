"""Small OCI and docker images in pure Python, and their push to a registry: what tests and the demo pull.

Everything is deterministic: the same specs give the same digests, except that `build_image` puts a random label
into the config unless told otherwise. One kubelet pull of an image ID changes how pods with `Never` see that ID
elsewhere, so no two tests may share a config.

`LayerSpec` says what a layer holds, `build_layer` makes its blob, `build_image` adds config and manifest,
`build_index` joins images of several platforms, `push` uploads any of them with the parts they are made of.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, cast

JSON = dict[str, Any]
CHUNK = 1 << 20
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
OCI_INDEX = f"{OCI}.index.v1+json"
DOCKER_LIST = f"{DOCKER}.distribution.manifest.list.v2+json"


class Compression(StrEnum):
    GZIP = "gzip"
    ZSTD = "zstd"
    PLAIN = "plain"


class Family(StrEnum):
    """Whose media types are used."""

    OCI = "oci"
    DOCKER = "docker"


LAYER_MEDIA_TYPES = {
    (Family.OCI, Compression.PLAIN): f"{OCI}.layer.v1.tar",
    (Family.OCI, Compression.GZIP): f"{OCI}.layer.v1.tar+gzip",
    (Family.OCI, Compression.ZSTD): f"{OCI}.layer.v1.tar+zstd",
    (Family.DOCKER, Compression.PLAIN): f"{DOCKER}.image.rootfs.diff.tar",
    (Family.DOCKER, Compression.GZIP): f"{DOCKER}.image.rootfs.diff.tar.gzip",
    (Family.DOCKER, Compression.ZSTD): f"{DOCKER}.image.rootfs.diff.tar.zstd",
}
MANIFEST_MEDIA_TYPES = {
    Family.OCI: f"{OCI}.manifest.v1+json",
    Family.DOCKER: f"{DOCKER}.distribution.manifest.v2+json",
}
CONFIG_MEDIA_TYPES = {Family.OCI: f"{OCI}.config.v1+json", Family.DOCKER: f"{DOCKER}.container.image.v1+json"}


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tar entry that is more than a plain file. `kind` is a `tarfile` type, such as `tarfile.SYMTYPE`."""

    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    uid: int = 0
    gid: int = 0


def symlink(target: str) -> Entry:
    return Entry(kind=tarfile.SYMTYPE, link=target, mode=0o777)


def executable(data: bytes) -> Entry:
    return Entry(data=data, mode=0o755)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer holds: `files` by path (whiteouts are files named `.wh.<name>`), or the tree in `directory`.

    `level` is the compressor's; a low one makes large demo layers in bearable time. `tar` replaces both by a
    ready archive, for layers that no sane tool would write.
    """

    files: Mapping[str, bytes | Entry] = field(default_factory=dict)
    compression: Compression | str = Compression.GZIP
    family: Family | str = Family.OCI
    directory: Path | None = None
    tar: bytes | None = None
    level: int = 6


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in memory, or in a file that belongs to whoever asked for it. `size` is in bytes."""

    media_type: str
    digest: str
    size: int
    source: bytes | Path

    @property
    def descriptor(self) -> JSON:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    blob: Blob
    diff_id: str


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image of one platform. `digest` is the manifest's, `config.digest` the image ID."""

    manifest: Blob
    config: Blob
    layers: tuple[BuiltLayer, ...]
    platform: JSON

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def diff_ids(self) -> list[str]:
        return [layer.diff_id for layer in self.layers]

    @property
    def chain_ids(self) -> list[str]:
        """By the OCI image spec (config.md, "Layer ChainID"), written anew here to check the product's."""
        chains: list[str] = []
        for diff_id in self.diff_ids:
            chains.append(sha256(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
        return chains


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """Images of several platforms under one digest."""

    index: Blob
    images: tuple[BuiltImage, ...]

    @property
    def digest(self) -> str:
        return self.index.digest


class _HashingSink:
    """Hashes and counts what goes through it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _compressor(
    spec: LayerSpec, sink: _HashingSink
) -> tuple[Callable[[bytes], object], Callable[[], object]]:
    """The write and the close of the compressor in front of `sink`."""
    if spec.compression == Compression.GZIP:
        zipped = gzip.GzipFile(
            filename="", mode="wb", compresslevel=spec.level, fileobj=cast("IO[bytes]", sink), mtime=0
        )
        return zipped.write, zipped.close
    if spec.compression == Compression.ZSTD:
        import zstandard  # noqa: PLC0415 - only Python 3.14 has one in its standard library

        frame = zstandard.ZstdCompressor(level=spec.level).compressobj()
        return lambda data: sink.write(frame.compress(data)), lambda: sink.write(frame.flush())
    return sink.write, lambda: None


def _tar_info(name: str, entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = entry.kind, entry.link, entry.mode
    info.uid, info.gid, info.mtime = entry.uid, entry.gid, 0
    info.size = len(entry.data)
    return info


def _with_parents(files: Mapping[str, bytes | Entry]) -> Iterator[tuple[str, Entry]]:
    """The entries in the order given, each directory before what is in it."""
    seen: set[str] = set()
    for path, content in files.items():
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in seen and parent not in files:
                seen.add(parent)
                yield parent, Entry(kind=tarfile.DIRTYPE, mode=0o755)
        yield "/".join(parts), content if isinstance(content, Entry) else Entry(data=content)


def _normalised(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime, info.uname, info.gname = 0, "", ""
    return info


def _write_tar(spec: LayerSpec, sink: _HashingSink) -> None:
    if spec.tar is not None:
        sink.write(spec.tar)
        return
    with tarfile.open(fileobj=cast("IO[bytes]", sink), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        if spec.directory is not None:
            for child in sorted(spec.directory.iterdir()):
                archive.add(child, arcname=child.name, filter=_normalised)
        for name, entry in _with_parents(spec.files):
            archive.addfile(_tar_info(name, entry), io.BytesIO(entry.data))


def build_layer(spec: LayerSpec, spool: Path | None = None) -> BuiltLayer:
    """Make the layer's blob: in memory, or streamed into the folder `spool` under its digest."""
    spool_file = spool / f"layer-{uuid.uuid4().hex}" if spool else None
    target: IO[bytes] = spool_file.open("xb") if spool_file else io.BytesIO()
    with target:
        compressed = _HashingSink(target.write)
        write, close = _compressor(spec, compressed)
        plain = _HashingSink(write)
        _write_tar(spec, plain)
        close()
        memory = target.getvalue() if isinstance(target, io.BytesIO) else b""
    source: bytes | Path = memory
    if spool_file:
        source = spool_file.rename(spool_file.with_name(compressed.digest.replace(":", "-")))
    media_type = LAYER_MEDIA_TYPES[Family(spec.family), Compression(spec.compression)]
    return BuiltLayer(Blob(media_type, compressed.digest, compressed.size, source), plain.digest)


def _document(media_type: str, content: JSON) -> Blob:
    data = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    return Blob(media_type, sha256(data), len(data), data)


def build_image(
    layers: Sequence[LayerSpec | BuiltLayer],
    *,
    config_extra: Mapping[str, Any] | None = None,
    family: Family | str = Family.OCI,
    architecture: str = "amd64",
    variant: str = "",
    unique: str | None = None,
    spool: Path | None = None,
) -> BuiltImage:
    """Build config, manifest and layers. `config_extra["config"]` is what runs: Cmd, Env, Entrypoint.

    `unique` goes into a label of the config; a random one by default, "" for none.
    """
    built = tuple(layer if isinstance(layer, BuiltLayer) else build_layer(layer, spool) for layer in layers)
    platform: JSON = {"os": "linux", "architecture": architecture}
    if variant:
        platform["variant"] = variant
    config: JSON = {
        **platform,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in built]},
        "history": [{"created_by": f"tests layer {number}"} for number in range(len(built))],
        **(config_extra or {}),
    }
    label = uuid.uuid4().hex if unique is None else unique
    if label:
        runtime = dict(config["config"])
        runtime["Labels"] = {**runtime.get("Labels", {}), "imageprepull.test/unique": label}
        config["config"] = runtime
    config_blob = _document(CONFIG_MEDIA_TYPES[Family(family)], config)
    media_type = MANIFEST_MEDIA_TYPES[Family(family)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config_blob.descriptor,
        "layers": [layer.blob.descriptor for layer in built],
    }
    return BuiltImage(_document(media_type, manifest), config_blob, built, platform)


def build_index(images: Sequence[BuiltImage], *, family: Family | str = Family.OCI) -> BuiltIndex:
    """Join images of several platforms."""
    media_type = OCI_INDEX if family == Family.OCI else DOCKER_LIST
    manifests = [{**image.manifest.descriptor, "platform": image.platform} for image in images]
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return BuiltIndex(_document(media_type, index), tuple(images))


class PushError(Exception):
    """A registry answered something else than success; the message has the request, status and body."""


class RegistryPush:
    """One keep-alive connection to a registry (distribution spec, "Pushing"), for one repository."""

    def __init__(self, base_url: str, repository: str, headers: Mapping[str, str] | None = None) -> None:
        url = urllib.parse.urlsplit(base_url)
        factory = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = factory(url.netloc, timeout=60)
        self._repository = repository
        self._headers = dict(headers or {})

    def close(self) -> None:
        self._connection.close()

    def _request(
        self, method: str, path: str, body: IO[bytes] | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {**self._headers, **(headers or {})})
        return self._connection.getresponse()

    def _expect(
        self, method: str, path: str, status: int, body: IO[bytes], headers: Mapping[str, str]
    ) -> str:
        """Send, demand `status`, and return the Location header."""
        response = self._request(method, path, body, headers)
        text = response.read().decode(errors="replace")
        if response.status != status:
            raise PushError(f"{method} {path}: {response.status} {response.reason}: {text[:500]}")
        return response.getheader("Location") or ""

    def blob(self, blob: Blob) -> None:
        """Upload one blob unless the repository has it."""
        response = self._request("HEAD", f"/v2/{self._repository}/blobs/{blob.digest}")
        response.read()
        if response.status == http.client.OK:
            return
        location = self._expect(
            "POST", f"/v2/{self._repository}/blobs/uploads/", 202, io.BytesIO(), {"Content-Length": "0"}
        )
        url = urllib.parse.urlsplit(location)
        separator = "&" if url.query else ""
        path = f"{url.path}?{url.query}{separator}digest={urllib.parse.quote(blob.digest)}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with blob.open() as body:
            self._expect("PUT", path, 201, body, headers)

    def manifest(self, blob: Blob, name: str) -> None:
        """Put a manifest or index under a tag or digest."""
        headers = {"Content-Type": blob.media_type, "Content-Length": str(blob.size)}
        with blob.open() as body:
            self._expect("PUT", f"/v2/{self._repository}/manifests/{name}", 201, body, headers)

    def image(self, image: BuiltImage, name: str) -> None:
        """Everything an image is made of, the manifest last."""
        for blob in {layer.blob.digest: layer.blob for layer in image.layers}.values():
            self.blob(blob)
        self.blob(image.config)
        self.manifest(image.manifest, name)


def push(
    image: BuiltImage | BuiltIndex,
    base_url: str,
    repository: str,
    tag: str,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Upload to `base_url` ("http://127.0.0.1:5000") and return the digest that `tag` now names."""
    upload = RegistryPush(base_url, repository, headers)
    try:
        if isinstance(image, BuiltIndex):
            for part in image.images:
                upload.image(part, part.digest)
            upload.manifest(image.index, tag)
        else:
            upload.image(image, tag)
    finally:
        upload.close()
    return image.digest
