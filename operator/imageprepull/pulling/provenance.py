"""What somebody else did to an image whose records we had to delete, remembered until a pull has made them anew.

Between chain_removal.py, which deletes the records of layers that are not to be believed, whosever they are, and
records.py, which writes those of the next pull. That pull may be one of a later life of the agent, so the memory is the
runtime's (memory.py), one lease per image and deed, which expires by itself where no pull follows and nobody did it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.leases import drop_lease
from imageprepull.pulling.memory import keep, recall
from imageprepull.pulling.ownership import BY_HAND, MADE, done_by_others
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord
from imageprepull.runtime.leases import Lease

THEIRS = "imageprepull.io/theirs"
"""One of the words of `done_by_others`."""
_DEEDS = frozenset({MADE, BY_HAND})


def to_remember(images: Iterable[Iterable[ImageRecord]]) -> dict[str, frozenset[str]]:
    """By the digest of a record's target, what others did to any record of the same image. Pure.

    An image is all that leads to one config: a tag that a kubelet pulled makes it the kubelet's under each of its names,
    since a removal takes all of them or none.
    """
    found: dict[str, frozenset[str]] = {}
    for records in map(list, images):
        done = frozenset[str]().union(*map(done_by_others, records))
        for digest in {record.target.digest for record in records} if done else ():
            found[digest] = found.get(digest, frozenset()) | done
    return found


async def remember(containerd: Containerd, done: Mapping[str, Collection[str]]) -> None:
    """Keep what `to_remember` said, before the first record is deleted; what is known already stays known.

    Who died between two deletions finds only records of ours left.
    """
    for digest, deeds in done.items():
        for deed in deeds:
            await keep(containerd, f"theirs-{deed}", {LEASE_IMAGE: digest, THEIRS: deed})


async def remembered(containerd: Containerd, digest: str) -> frozenset[str]:
    """What others did to the image of that target before we deleted its records; nothing, if we did not."""
    return frozenset(lease.labels[THEIRS] for lease in await _notes(containerd, digest)) & _DEEDS


async def forget(containerd: Containerd, digest: str) -> None:
    """For a pull whose records say it themselves, and are there to stay."""
    for lease in await _notes(containerd, digest):
        await drop_lease(containerd, lease.id)


async def _notes(containerd: Containerd, digest: str) -> list[Lease]:
    return [lease for lease in await recall(containerd, {LEASE_IMAGE: digest}) if THEIRS in lease.labels]
