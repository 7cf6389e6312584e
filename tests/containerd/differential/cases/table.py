"""What the tables of cases in this folder are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tests.containerd.differential.layers import DOCKER_TAR, Chain, Layer
from tests.containerd.differential.tarbytes import char, directory, file, hardlink, symlink, tar


class Expected(StrEnum):
    """What becomes of the last layer of a chain."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    HANDED_ON = "accepted by containerd, left to it by us"
    HANDED_ON_REFUSED = "refused by containerd, and left to it by us"
    HOST_TOOLS = "refused by Go's gzip, accepted by igzip, unpigz and us"
    LIMITED = "accepted by containerd, beyond a limit of ours"


OK, NO = Expected.ACCEPTED, Expected.REFUSED


@dataclass(frozen=True)
class Case:
    """A chain and what becomes of it; `differs` says how one version of containerd has its own mind."""

    name: str
    chain: Chain
    expected: Expected = OK
    differs: dict[str, Expected] = field(default_factory=dict)
    other_tree: str = ""
    """The version that makes another tree than ours and the other's."""

    def by(self, version: str) -> Expected:
        return self.differs.get(version, self.expected)


def plain(content: bytes | Layer) -> Layer:
    return content if isinstance(content, Layer) else Layer(content, DOCKER_TAR)


LOWER = plain(
    tar(
        directory("d", 0o750, uid=11, gid=12, mtime=1_100_000_000, xattrs={"user.lower": "d"}),
        directory("d/sub", 0o700, uid=13, gid=14, mtime=1_200_000_000),
        file("d/old", b"lower", uid=15),
        directory("s", 0o2775, gid=50),
        directory("s/in", 0o711, gid=51),
        directory("t", 0o1777),
        directory("usr", 0o755),
        directory("usr/lib", 0o555, uid=3, gid=4, mtime=1_300_000_000),
        symlink("lib", "usr/lib"),
        symlink("abs", "/d"),
        file("f", b"lower file", mode=0o4755, uid=21, gid=22),
        hardlink("g", "f"),
        char("null", 1, 3, mode=0o666),
    )
)
"""A layer to stand on, whose directories have owners, modes, times and attributes of their own."""


def chain(
    name: str, *layers: bytes | Layer, expected: Expected = OK, other_tree: str = "", **differs: Expected
) -> Case:
    """Layers from the bottom up. `differs`: v1_6=…, v2_4=…."""
    by_version = {key.removeprefix("v").replace("_", "."): value for key, value in differs.items()}
    return Case(name, tuple(plain(layer) for layer in layers), expected, by_version, other_tree)


def both(
    name: str,
    content: bytes | Layer,
    bottom: Expected = OK,
    upper: Expected | None = None,
    **differs: Expected,
) -> Iterator[Case]:
    """The layer at the bottom and above `LOWER`, which have different rules."""
    yield chain(f"{name}-bottom", content, expected=bottom, **differs)
    yield chain(f"{name}-upper", LOWER, content, expected=bottom if upper is None else upper, **differs)
