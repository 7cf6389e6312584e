"""What somebody else did to an image whose records we had to delete, remembered until a pull has made them anew.

Between chain_removal.py, which deletes the records of layers that are not to be believed, whosever they are, and
records.py, which writes those of the next pull. That pull may be one of a later life of the agent, so the memory is the
runtime's (memory.py), one lease per image and deed, which expires by itself where no pull follows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.pulling.leases import drop_lease
from imageprepull.pulling.memory import keep
from imageprepull.pulling.ownership import BY_HAND, MADE, done_by_others
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord

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
            await keep(containerd, _lease_of(digest, deed), {LEASE_IMAGE: digest, THEIRS: deed})


async def remembered(containerd: Containerd, digest: str) -> frozenset[str]:
    """What others did to the image of that target before we deleted its records; nothing, if we did not."""
    leases = await containerd.leases.list([f"id=={_lease_of(digest, deed)}" for deed in _DEEDS])
    return frozenset(lease.labels.get(THEIRS, "") for lease in leases) & _DEEDS


async def forget(containerd: Containerd, digest: str) -> None:
    """For a pull whose records say it themselves, and are there to stay."""
    for deed in _DEEDS:
        await drop_lease(containerd, _lease_of(digest, deed))


def _lease_of(digest: str, deed: str) -> str:
    # A name of the runtime's has 76 characters at most.
    return f"imageprepull-theirs-{deed}-{digest.rpartition(':')[2][:32]}"
