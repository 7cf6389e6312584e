"""What the agent needs from its node: the seam between the reconciler and containerd (containerd_node.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from imageprepull.pulling.pins import Pin
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.space import NoRoom
from imageprepull.resources.nodeprepull import Agent, DesiredImage, Disk, RegistryHold, RegistryStatus


@dataclass(frozen=True, slots=True)
class Held:
    """What the runtime says about one image, asked just now. `missing` tells what is not there.

    `pinned` is what the CRI says, whoever did it; `our_pin` whether a pin that we set is on the records. `unmarked`: the
    image is there, and a record lacks a label of ours: the pin that is wanted, or the note that it was given its tag.
    `tag_means`: the digest to which somebody has moved the tag since.
    """

    present: bool
    missing: str = ""
    pinned: bool = False
    layers: int = 0
    our_pin: bool = False
    unmarked: bool = False
    tag_means: str = ""
    parts: frozenset[str] = frozenset()
    """Of an image that is present: digests of its documents and layers, and the chain IDs of its snapshots."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pull that succeeded. Seconds by phase (resolve, download, extract, total); bytes by host that answered."""

    pinned: bool
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_by_host: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compared:
    """An image that was compared with its blobs: what was found, in words, and whether it has to be pulled again."""

    text: str
    broken: bool = False


class NodeError(Exception):
    """What a node could not do. `permanent`: trying again without a change elsewhere cannot help.

    `unavailable`: the runtime as a whole does not answer, so that asking about other images is useless.
    `no_room`: what there was no room for. `resumable`: it lay with others, and what was fetched is as good as it
    was.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        permanent: bool = False,
        retry_after: float | None = None,
        unavailable: bool = False,
        no_room: NoRoom | None = None,
        resumable: bool = False,
    ) -> None:
        self.reason = reason
        self.permanent = permanent
        self.retry_after = retry_after
        self.unavailable = unavailable
        self.no_room = no_room
        self.resumable = resumable
        super().__init__(message)


class Node(Protocol):
    """One node's runtime. Every method raises `NodeError`; cancelling a pull cleans up and keeps its lease."""

    async def held(self, image: DesiredImage) -> Held:
        """Ask the runtime whether the image is there and unpacked, and whether it is pinned as it should be."""

    async def pull(self, image: DesiredImage, progress: ImageProgress) -> Pulled:
        """Bring the image onto the node; returns when the CRI shows it."""

    async def verify(self, image: DesiredImage, progress: ImageProgress) -> Compared:
        """Compare a present image with its blobs. What is broken is gone afterwards."""

    async def pin(self, image: DesiredImage) -> None:
        """Set what labels of ours the records lack of an image that is whole, if wanted the pin. Nothing is fetched."""

    async def unpin(self, image: DesiredImage, staying: Sequence[str] = ()) -> None:
        """Take our pin from the image's records; `staying` are references to the same digest that keep theirs."""

    async def remove(self, image: DesiredImage, wanted: Callable[[], Collection[str]]) -> str:
        """Drop the lease, and remove the image if it was us who brought it and no digest that `wanted` names is its.

        `wanted` is asked again right before anything is deleted. Returns why it stays, or "". Reason ImageInUse names who uses it. Not while the image is pulled.
        """

    async def pins(self) -> list[Pin]:
        """The image records that carry a pin of ours."""

    async def abandon(self, image: DesiredImage) -> None:
        """Drop the lease of an image that nobody will go on with, so that the runtime may collect what was fetched."""

    async def give_back(self, digests: Collection[str] | None) -> int:
        """Have collected, now, what unfinished pulls hold: of images with these digests, or of all that ever began.

        Pulls at work keep what they have; returns how many those are. Returns when the runtime has collected.
        """

    def set_limits(self, parallel_downloads: int, stall_timeout: float) -> None:
        """The node's limits over all pulls, effective at once; seconds without a byte end a connection."""

    def hold(self, registries: Sequence[RegistryHold]) -> None:
        """Leave these registries alone until they say, and no others."""

    def registries(self) -> list[RegistryStatus]:
        """What registries said about their limits, and which are held."""

    def about(self) -> Agent:
        """Versions and abilities, for the status."""

    def disk(self) -> Disk | None:
        """The file system of the snapshots, or None while it is unknown."""
