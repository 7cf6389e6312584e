"""What this machine can do at all: the parts of a pull that nobody gets around, each alone. `python -m benchmarks.limits`.

Inflating, hashing the tar (its digest is the layer's diff ID) and the blob, making the files and copying their bytes
into the page cache. Their sum for an image, divided by the cores, is a floor for the time of any pull here that
does not skip one of them; how close a pull comes says what is left to gain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard
from isal import isal_zlib

from benchmarks.disk import fresh_disk
from benchmarks.images import NAMES, Image, Store, alone, cache
from benchmarks.machine import Unfit, check, cores

READ = 256 << 10
"""Pieces of compressed data; smaller ones cost time."""
SAMPLE = 192 << 20
"""Compressed bytes that are inflated."""
HASHED = 1 << 30
WRITTEN = 1 << 30
FILES = 40_000
FILES_PER_FOLDER = 200
FILE_SIZE = 4 << 10
"""Of the small files; copying more bytes is what `write` measures."""


Clock = Callable[[], float]
"""Seconds of CPU time of the process for what one core can do, whoever else works; of the wall for all cores."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Per second: of one core's CPU time, or of all cores together. Bytes of unpacked data, files."""

    inflate_gzip: float
    inflate_zstd: float
    sha256: float
    create: float
    write: float

    def seconds(self, image: Image) -> dict[str, float]:
        """What each part takes for an image."""
        inflate = self.inflate_zstd if image.name == "zstd" else self.inflate_gzip
        return {
            "inflate": image.unpacked / inflate,
            "hash tar": image.unpacked / self.sha256,
            "hash blob": image.compressed / self.sha256,
            "create": image.files / self.create,
            "write": image.unpacked / self.write,
        }


def pieces(store: Store, image: Image) -> Iterator[tuple[str, bytes]]:
    """The layers' first bytes up to `SAMPLE`, with the layer they are of."""
    left = SAMPLE
    for digest in image.layers:
        with store.blob(digest).open("rb", buffering=0) as file:
            while left > 0 and (data := file.read(READ)):
                left -= len(data)
                yield digest, data


def inflate_gzip(clock: Clock, store: Store, image: Image) -> float:
    """Unpacked bytes per second."""
    size, current, started = 0, "", clock()
    stream = isal_zlib.decompressobj(31)
    for digest, data in pieces(store, image):
        if digest != current:
            current, stream = digest, isal_zlib.decompressobj(31)
        size += len(stream.decompress(data))
    return size / (clock() - started)


def inflate_zstd(clock: Clock, store: Store, image: Image) -> float:
    """Unpacked bytes per second."""
    size, current, started = 0, "", clock()
    stream = zstandard.ZstdDecompressor().decompressobj()
    for digest, data in pieces(store, image):
        if digest != current:
            current, stream = digest, zstandard.ZstdDecompressor().decompressobj()
        size += len(stream.decompress(data))
    return size / (clock() - started)


def sha256(clock: Clock) -> float:
    """Bytes per second."""
    piece = bytes(1 << 20)
    started = clock()
    digest = hashlib.sha256()
    for _number in range(HASHED // len(piece)):
        digest.update(piece)
    return HASHED / (clock() - started)


def create(clock: Clock, folder: Path) -> float:
    """Small files per second, as an extractor makes them: open relative to the folder, write, owner, mode, times."""
    data = b"x" * FILE_SIZE
    started = clock()
    for number in range(FILES // FILES_PER_FOLDER):
        (folder / str(number)).mkdir()
        place = os.open(folder / str(number), os.O_RDONLY | os.O_DIRECTORY)
        for name in range(FILES_PER_FOLDER):
            file = os.open(
                str(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place
            )
            os.write(file, data)
            os.fchown(file, 0, 0)
            os.fchmod(file, 0o644)
            os.utime(file, ns=(0, 0))
            os.close(file)
        os.close(place)
    return FILES / (clock() - started)


def write(clock: Clock, folder: Path) -> float:
    """Bytes per second into the page cache, in files of 64 MiB."""
    piece = os.urandom(1 << 20)
    started = clock()
    for number in range(WRITTEN >> 26):
        with (folder / f"large-{number}").open("wb", buffering=0) as file:
            for _ in range(64):
                file.write(piece)
    return WRITTEN / (clock() - started)


def _together(count: int, work: Callable[..., float], arguments: list[tuple[object, ...]]) -> float:
    """The sum of what `count` processes reach at the same time."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(count, mp_context=context) as processes:
        futures = [processes.submit(work, *arguments[number]) for number in range(count)]
        return sum(future.result() for future in futures)


def measure(store: Store, count: int, clock: Clock) -> Limits:
    """With `count` processes at once, each part for itself, on a fresh disk where it matters."""
    eight, zstd = store.image("eight"), store.image("zstd")
    for image in (eight, zstd):
        store.read_ahead(image)

    def on_disk(work: Callable[[Clock, Path], float]) -> float:
        with fresh_disk() as disk:
            folders = [disk.folder / f"process-{number}" for number in range(count)]
            for folder in folders:
                folder.mkdir()
            return _together(count, work, [(clock, folder) for folder in folders])

    return Limits(
        inflate_gzip=_together(count, inflate_gzip, [(clock, store, eight)] * count),
        inflate_zstd=_together(count, inflate_zstd, [(clock, store, zstd)] * count),
        sha256=_together(count, sha256, [(clock,)] * count),
        create=on_disk(create),
        write=on_disk(write),
    )


def text(one: Limits, all_cores: Limits, images: list[Image]) -> str:
    """For people."""
    lines = [f"{'':24}{'one core':>12}{f'{cores()} cores':>12}"]
    for name, unit, scale in (
        ("inflate_gzip", "MB/s unpacked", 1e6),
        ("inflate_zstd", "MB/s unpacked", 1e6),
        ("sha256", "MB/s", 1e6),
        ("create", "files/s", 1.0),
        ("write", "MB/s", 1e6),
    ):
        first, second = getattr(one, name) / scale, getattr(all_cores, name) / scale
        lines.append(f"{name:24}{first:12.0f}{second:12.0f}  {unit}")
    for image in images:
        single, parallel = one.seconds(image), all_cores.seconds(image)
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in single.items())
        lines.append(
            f"{image.name}: {sum(single.values()):.1f} CPU s ({parts}); "
            f"not under {sum(parallel.values()):.1f} s on all cores"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Entry of `python -m benchmarks.limits`; 2 when the machine is not fit for measuring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--force", action="store_true", help="measure even while others work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    arguments = parser.parse_args()
    try:
        problems = check(force=arguments.force)
    except Unfit as error:
        sys.stderr.write(f"benchmarks.limits: {error}\n")
        return 2
    store = Store()
    with alone(cache() / "lock", "measuring"):
        one = measure(store, 1, time.process_time)
        all_cores = measure(store, cores(), time.monotonic)
    sys.stdout.write(text(one, all_cores, [store.image(name) for name in NAMES]))
    for problem in problems:
        sys.stdout.write(f"measured in spite of: {problem}\n")
    if arguments.json:
        found = {
            "oneCore": asdict(one),
            "allCores": asdict(all_cores),
            "cores": cores(),
            "problems": problems,
        }
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
