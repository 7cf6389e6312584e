"""The images that are pulled, kept in the cache once they are made: blobs by digest and one JSON file per image."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.corpus import SOURCES, Found, app_layers, choose, divide, small_layers, walk
from benchmarks.layers import write_layers
from tests.testbed.binaries import cache_root
from tests.testbed.images import BuiltImage, BuiltLayer, Compression, LayerSpec, build_image, build_layer

RECIPE = 1
"""Part of the folder's name: another way to make the images makes others."""
NAMES = ("eight", "zstd", "single", "small", "app")
WARM_UP = "warm-up"
"""A tiny image that is pulled before the clock runs."""
FREE_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the cache. Sizes in bytes; `files` counts files and links, not folders."""

    name: str
    manifest: str
    manifest_type: str
    config: str
    chain: str
    """Chain ID of the topmost layer: the snapshot that is there last."""
    layers: tuple[str, ...]
    """Digests, the lowest first."""
    compressed: int
    unpacked: int
    files: int

    @property
    def digests(self) -> tuple[str, ...]:
        """Of all blobs that a pull asks for."""
        return (self.manifest, self.config, *self.layers)

    @property
    def repository(self) -> str:
        """Where registries serve it."""
        return f"bench/{self.name}"


def cache() -> Path:
    """Everything that benchmarks keep."""
    return cache_root() / "bench"


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file; waits, and says so, while another process does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another process that is {what}\n")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


class Store:
    """The cache's images. `folder` has `blobs/` and `<name>.json`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache() / f"images-{RECIPE}"
        self.blobs = self.folder / "blobs"

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.blobs / digest.removeprefix("sha256:")

    def images(self) -> dict[str, Image]:
        """What is there."""
        found = {}
        for file in sorted(self.folder.glob("*.json")):
            fields = json.loads(file.read_text())
            found[file.stem] = Image(**{**fields, "layers": tuple(fields["layers"])})
        return found

    def image(self, name: str) -> Image:
        """One image; made with all others if it is missing, which takes minutes.

        Raises KeyError for a name that nothing makes, CalledProcessError when making failed.
        """
        if name not in (*NAMES, WARM_UP):
            raise KeyError(name)
        if name not in self.images():
            # A process of its own, since niceness can't be taken back.
            command = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.images", str(self.folder)]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])  # noqa: S603
        return self.images()[name]

    def make(self) -> None:
        """Make all of them in one pass over the files.

        Raises OSError where there is no room, or when a file changes while it is read.
        """
        self.blobs.mkdir(parents=True, exist_ok=True)
        with alone(self.folder / "lock", "making images"):
            if set(self.images()) < {*NAMES, WARM_UP}:
                self._make()

    def _make(self) -> None:
        if shutil.disk_usage(self.folder).free < FREE_BYTES:
            raise OSError(f"less than {FREE_BYTES >> 30} GiB free in {self.folder}")
        for leftover in self.blobs.glob(".*"):
            leftover.unlink()
        chosen = choose(walk(SOURCES))
        size = sum(one.size for one in chosen)
        sys.stderr.write(f"making images of {len(chosen)} files, {size / 1e9:.2f} GB; this is done once\n")
        built, whole = write_layers(
            divide(chosen), self.blobs, (Compression.GZIP, Compression.ZSTD), single=True
        )
        assert whole is not None  # noqa: S101 - asked for above.
        self._keep("eight", built[Compression.GZIP], chosen)
        self._keep("zstd", built[Compression.ZSTD], chosen)
        self._keep("single", [whole], chosen)
        for name, pieces in (("small", small_layers(chosen)), ("app", app_layers(chosen))):
            built, _ = write_layers(pieces, self.blobs, (Compression.GZIP,), single=False)
            self._keep(name, built[Compression.GZIP], [one for layer in pieces for one in layer])
        self._keep(WARM_UP, [build_layer(LayerSpec({"warm": b"up"}), self.blobs)], [])
        wanted = {self.blob(digest) for image in self.images().values() for digest in image.digests}
        for blob in set(self.blobs.iterdir()) - wanted:
            blob.unlink()

    def _keep(self, name: str, layers: Sequence[BuiltLayer], files: Sequence[Found]) -> None:
        image = build_image(layers, unique="")
        self._put(image)
        kept = Image(
            name=name,
            manifest=image.digest,
            manifest_type=image.manifest.media_type,
            config=image.config.digest,
            chain=image.chain_ids[-1],
            layers=tuple(layer.blob.digest for layer in layers),
            compressed=sum(layer.blob.size for layer in layers),
            unpacked=sum(one.size for one in files),
            files=len(files),
        )
        unfinished = self.folder / f".{name}"
        unfinished.write_text(json.dumps(asdict(kept), indent=1))
        unfinished.rename(self.folder / f"{name}.json")
        sys.stderr.write(f"{name}: {len(layers)} layers, {kept.compressed / 1e6:.0f} MB compressed\n")

    def _put(self, image: BuiltImage) -> None:
        for blob in (image.manifest, image.config, *(layer.blob for layer in image.layers)):
            target = self.blob(blob.digest)
            if isinstance(blob.source, bytes):
                target.write_bytes(blob.source)
            elif blob.source != target:
                blob.source.rename(target)

    def read_ahead(self, image: Image) -> None:
        """Read all of an image's blobs, so that the registry serves them from memory."""
        for digest in image.digests:
            with self.blob(digest).open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass


if __name__ == "__main__":
    Store(Path(sys.argv[1]) if len(sys.argv) > 1 else None).make()
