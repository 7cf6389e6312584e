"""Which files of this machine the benchmark's images are made of, and how they are divided among layers.

Real files, because invented ones compress and lay out unlike any image: system libraries and documentation, and the
sources that a Go build brings. The choice is deterministic for a machine; two machines have different ones, so what
was chosen (files, bytes) is part of every result.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = (Path("/usr"), Path.home() / "go/pkg/mod", Path("/opt"))
FILES = 212_000
BYTES = 3_600_000_000
HUGE = 4 << 20
HUGE_TOTAL = 1_000_000_000
"""Bytes of files over `HUGE` that are taken: compilers and the like would otherwise fill the image with few files."""

LAYER_SHARES = (0.08, 0.13, 0.27, 0.16, 0.13, 0.11, 0.08, 0.04)
"""Of the whole, by bytes and layer: a base, a few large ones in the middle, a small application on top."""

SMALL_LAYERS = 100
SMALL_FILE = 64 << 10
SMALL_FILES_PER_LAYER = 150

APP_SIZES = (150_000_000, 60_000_000, 25_000_000, 12_000_000, *[40_000] * 16)
"""Bytes of a service's layers: a base, a runtime, its libraries, itself, and what the rest of its recipe made."""
APP_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A file or symbolic link and its size in bytes."""

    path: Path
    size: int


def walk(sources: Iterable[Path]) -> Iterator[Found]:
    """Regular files and symbolic links below `sources`, sorted by name within each folder."""
    for source in sources:
        for folder, folders, files in os.walk(source):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    yield Found(path, status.st_size)


def choose(found: Iterable[Found], *, files: int = FILES, size: int = BYTES) -> list[Found]:
    """The first files that together reach both `files` and `size` bytes, few huge ones among them."""
    chosen: list[Found] = []
    total, huge = 0, 0
    for one in found:
        if one.size > HUGE:
            if huge + one.size > HUGE_TOTAL:
                continue
            huge += one.size
        chosen.append(one)
        total += one.size
        if len(chosen) >= files and total >= size:
            break
    return chosen


def divide(chosen: Sequence[Found], shares: Sequence[float] = LAYER_SHARES) -> list[list[Found]]:
    """Cut the sequence into one piece for each share of its bytes; order is kept, no piece is empty by intent."""
    total = sum(one.size for one in chosen)
    layers: list[list[Found]] = [[] for _ in shares]
    number, taken, limit = 0, 0, shares[0] * total
    for one in chosen:
        while taken >= limit and number < len(shares) - 1:
            number += 1
            limit += shares[number] * total
        layers[number].append(one)
        taken += one.size
    return layers


def small_layers(
    chosen: Sequence[Found], layers: int = SMALL_LAYERS, each: int = SMALL_FILES_PER_LAYER
) -> list[list[Found]]:
    """`layers` pieces of `each` small files, as images have that were built by many short steps."""
    small = [one for one in chosen if one.size <= SMALL_FILE]
    # From the end, where the sources are: documentation at the front is all links and tiny files.
    small = small[-layers * each :]
    return [small[start : start + each] for start in range(0, len(small), each)]


def app_layers(chosen: Sequence[Found], sizes: Sequence[int] = APP_SIZES) -> list[list[Found]]:
    """Pieces that reach `sizes` bytes each, of files of an ordinary size, as a service's image has them."""
    ordinary = [one for one in chosen if one.size <= APP_FILE]
    # Not from the front, where documentation is.
    files = iter(ordinary[len(ordinary) // 3 :])
    pieces: list[list[Found]] = []
    for size in sizes:
        piece: list[Found] = []
        taken = 0
        while taken < size and (one := next(files, None)) is not None:
            piece.append(one)
            taken += one.size
        pieces.append(piece)
    return pieces
