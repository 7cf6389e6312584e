"""Layer blobs from files: one pass over the files, one tar stream, several compressions of it at once.

Nothing is held in memory but one piece of the stream. Each compression works in a thread of its own; zlib, zstandard
and hashlib let the others run meanwhile.
"""

from __future__ import annotations

import hashlib
import tarfile
import uuid
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol, cast

import zstandard

from benchmarks.corpus import Found
from tests.testbed.images import LAYER_MEDIA_TYPES, Blob, BuiltLayer, Compression, Family

PIECE = 1 << 20
GZIP_LEVEL = 6
"""What image builders use by default."""
ZSTD_LEVEL = 3
END = bytes(1024)
"""Two zero blocks end a tar."""


class _Stream(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class LayerFile:
    """One layer's blob while it is written below `folder`; `close` names it by its digest."""

    def __init__(self, folder: Path, compression: Compression) -> None:
        self._folder = folder
        self._compression = compression
        self._path = folder / f".{uuid.uuid4().hex}"
        self._file = self._path.open("wb")
        self._stream: _Stream = (
            zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
            if compression is Compression.GZIP
            else zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
        )
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """More of the tar."""
        self._plain.update(data)
        self._out(self._stream.compress(data))

    def close(self) -> BuiltLayer:
        """End the stream; the finished layer."""
        self._out(self._stream.flush())
        self._file.close()
        digest = self._packed.hexdigest()
        path = self._path.rename(self._folder / digest)
        media_type = LAYER_MEDIA_TYPES[Family.OCI, self._compression]
        blob = Blob(media_type, f"sha256:{digest}", self._size, path)
        return BuiltLayer(blob, f"sha256:{self._plain.hexdigest()}")

    def _out(self, data: bytes) -> None:
        self._packed.update(data)
        self._size += len(data)
        self._file.write(data)


class TarTee:
    """What `tarfile` writes into: collects pieces and gives each to all targets at once."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.targets: Sequence[LayerFile] = ()
        self._threads = threads
        self._held = bytearray()
        self._written = 0

    def write(self, data: bytes) -> int:
        """As a file would."""
        self._held += data
        self._written += len(data)
        if len(self._held) >= PIECE:
            self.flush()
        return len(data)

    def tell(self) -> int:
        """As a file would."""
        return self._written

    def flush(self) -> None:
        """Hand on what is held, and wait until all targets have taken it."""
        piece = bytes(self._held)
        self._held.clear()
        list(self._threads.map(lambda target: target.write(piece), self.targets))


def add(archive: tarfile.TarFile, found: Found, seen: set[Path]) -> None:
    """One file, before it those of its folders that this layer does not have yet."""
    missing = [parent for parent in found.path.parents if parent not in seen and parent != Path("/")]
    for parent in reversed(missing):
        seen.add(parent)
        archive.addfile(_plain(archive.gettarinfo(parent)))
    if found.path.is_symlink():
        archive.addfile(_plain(archive.gettarinfo(found.path)))
        return
    with found.path.open("rb") as file:
        info = archive.gettarinfo(fileobj=file)
        # A further name of an inode is a link for tarfile; its first name may be in another layer.
        info.type, info.linkname = tarfile.REGTYPE, ""
        info.size = found.path.stat().st_size
        archive.addfile(_plain(info), file)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whole seconds and no names of users: a PAX header for each file is not what images have."""
    info.mtime = int(info.mtime)
    info.uname = info.gname = ""
    return info


def write_layers(
    layers: Iterable[Sequence[Found]], folder: Path, compressions: Sequence[Compression], *, single: bool
) -> tuple[dict[Compression, list[BuiltLayer]], BuiltLayer | None]:
    """Each layer in each compression, and if `single` all of them once more as one gzip layer.

    Raises OSError when a file changes while it is read.
    """
    built: dict[Compression, list[BuiltLayer]] = {compression: [] for compression in compressions}
    with ThreadPoolExecutor(len(compressions) + 1) as threads:
        tee = TarTee(threads)
        whole = LayerFile(folder, Compression.GZIP) if single else None
        for layer in layers:
            parts = [LayerFile(folder, compression) for compression in compressions]
            tee.targets = [*parts, *([whole] if whole else [])]
            # Never closed: its end mark would be in the middle of the single layer.
            archive = tarfile.TarFile(
                fileobj=cast("IO[bytes]", tee), mode="w", format=tarfile.PAX_FORMAT, dereference=False
            )
            seen: set[Path] = set()
            for found in layer:
                add(archive, found, seen)
                archive.getmembers().clear()  # it would remember each of 200,000
            tee.flush()
            for part, compression in zip(parts, compressions, strict=True):
                part.write(END)
                built[compression].append(part.close())
        if whole is None:
            return built, None
        whole.write(END)
        return built, whole.close()
