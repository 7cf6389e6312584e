"""The image that faults happen to: twelve small layers with what unpacking has to get right, the same every time."""

from __future__ import annotations

import functools
import io
import random
import tarfile
from typing import Any

from tests.testbed.images import BuiltImage, Entry, LayerSpec, build_image, symlink

SEED = 20
LAYERS = 12
_WORDS = 64


@functools.cache
def build() -> BuiltImage:
    """About 20 MB compressed."""
    chance = random.Random(SEED)
    layers = [_files(chance, number) for number in range(LAYERS - 3)]
    # Directories that are not listed take their attributes from below: the fix-up before the exchange.
    layers.insert(3, _bare(chance, {f"d1/sub{n}/late{n}": 2000 for n in range(40)}))
    layers.insert(6, _bare(chance, {"d2/.wh.f3": 0, "d0/sub1/.wh..wh..opq": 0, "d4/hard": 900_000}))
    layers.append(_many(chance))
    return build_image(layers, unique="")


def _data(chance: random.Random, size: int) -> bytes:
    """Compresses to about a half, as layers do."""
    return b"".join(chance.randbytes(_WORDS) + b"\0" * _WORDS for _ in range(-(-size // (2 * _WORDS))))


def _files(chance: random.Random, number: int) -> LayerSpec:
    top = f"d{number}"
    files: dict[str, bytes | Entry] = {top: Entry(kind=tarfile.DIRTYPE, mode=0o2751, uid=number, gid=7)}
    for n in range(4):
        folder = f"{top}/sub{n}"
        files[folder] = Entry(kind=tarfile.DIRTYPE, mode=0o700 + n, uid=n, gid=n)
        files[f"{folder}/small"] = _data(chance, 5000)
    for n in range(8):
        data = _data(chance, chance.choice((40_000, 300_000, 900_000)))
        files[f"{top}/f{n}"] = Entry(data=data, mode=0o640, uid=1000 + n, gid=n)
    files[f"{top}/link"] = symlink("f1")
    files[f"{top}/hard"] = Entry(kind=tarfile.LNKTYPE, link=f"{top}/f2", mode=0o640)
    return LayerSpec(files, level=1, compression="zstd" if number % 4 == 2 else "gzip")


def _many(chance: random.Random) -> LayerSpec:
    return LayerSpec({f"many/{n % 50}/{n}": _data(chance, 200) for n in range(3000)}, level=1)


def _bare(chance: random.Random, sizes: dict[str, int]) -> LayerSpec:
    """Files whose directories the archive does not list."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, size in sizes.items():
            data = _data(chance, size) if size else b""
            info = tarfile.TarInfo(name)
            attributes: dict[str, Any] = {"size": len(data), "uid": 3, "gid": 4, "mode": 0o600}
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return LayerSpec(tar=buffer.getvalue(), level=1)
