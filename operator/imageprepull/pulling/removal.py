"""Removing an image that we brought: all its records or none; layers follow with the runtime's own collection.

`decide` says what may go, from what `remove_image` has just read. An image is what the CRI takes for one: every record
that leads to one config, under whatever name and by whatever index. It goes only when each of its records is ours
still (`MANAGED`, which a pull by anybody else takes off the name that it pulled), nothing wants it, and nobody works
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import EXTRACT, GC_SNAPSHOT, LEASE
from imageprepull.pulling.leading import records_of
from imageprepull.pulling.leases import collect
from imageprepull.pulling.ownership import deletion_order, is_of_id, of_somebody_else, taken_since
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.cri import CriContainer
from imageprepull.runtime.errors import NotFound
from imageprepull.runtime.images import ImageRecord
from imageprepull.runtime.snapshots import SnapshotInfo, SnapshotKind

log = structlog.get_logger(__name__)
IN_USE = "ImageInUse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one image: the records to delete, in this order; or why it stays for good; or who works with it."""

    records: tuple[str, ...] = ()
    kept: str = ""
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """An image in the runtime: its records, its IDs (config digests), and the tops of its chains."""

    records: tuple[ImageRecord, ...]
    ids: frozenset[str]
    tops: frozenset[str]


def decide(found: Found, wanted: Collection[str], users: Sequence[str]) -> Verdict:
    """What becomes of an image. `wanted` are top-level digests that must stay, `users` who works with it. Pure."""
    for record in found.records:
        if record.target.digest in wanted:
            return Verdict(kept=f"{record.name} is still wanted")
    for record in found.records:
        if what := of_somebody_else(record):
            return Verdict(kept=f"{record.name} was {what} by somebody else")
    if users:
        return Verdict(users=tuple(users))
    return Verdict(tuple(record.name for record in deletion_order(found.records)))


def users_of(
    found: Found, containers: Iterable[CriContainer], snapshots: Iterable[SnapshotInfo]
) -> list[str]:
    """Who works with an image, in words: containers in any state, and others that stand on its topmost layer. Pure.

    An image of the same layers with another config stands there too, but its containers say what they are of.
    """
    named = found.ids | {record.name for record in found.records}
    named |= {record.target.digest for record in found.records}
    containers = list(containers)
    users = [str(one) for one in containers if one.images & named]
    known = {one.id for one in containers}
    for snapshot in snapshots:
        if snapshot.kind is SnapshotKind.COMMITTED or snapshot.parent not in found.tops:
            continue
        # What is being unpacked on it is held by a lease, and needs the layers only.
        unpacking = LEASE in snapshot.labels or snapshot.name.startswith(EXTRACT)
        if snapshot.name not in known and not unpacking:
            users.append(f"snapshot {snapshot.name}")
    return users


async def remove_image(
    containerd: Containerd,
    digest: str,
    *,
    snapshotter: str,
    wanted: Callable[[], Collection[str]],
    lease_labels: Mapping[str, str],
) -> Verdict:
    """Remove the image that `digest` is the target of, unless it has to stay; returns when its layers are collected.

    May be called again after dying anywhere: it goes on with what is left. `wanted` names the top-level digests that
    stay; it is asked again before each record is deleted, since a slow runtime may take minutes until then.
    `lease_labels` say whose the lease of the collection is.

    Raises:
        PullError: ImageInUse, with who uses it; nothing was removed.
        RuntimeFault: the runtime does not answer; call again.
    """
    if digest in wanted():
        return Verdict(kept=f"{digest} is still wanted")
    found = await find_image(containerd, digest, snapshotter)
    users: list[str] = []
    if found.records:
        containers = await containerd.cri.list_containers()
        users = users_of(found, containers, await containerd.snapshots.list(snapshotter, []))
    verdict = decide(found, wanted(), users)
    if verdict.users:
        more = f" and {len(verdict.users) - 1} more" if len(verdict.users) > 1 else ""
        raise PullError(IN_USE, f"{verdict.users[0]}{more} uses it; it is removed when nobody does")
    if verdict.kept:
        return verdict
    if why := await _delete(containerd, found, verdict.records, wanted):
        return Verdict(kept=why)
    # Deletions alone start none.
    await collect(containerd, lease_labels)
    if verdict.records:
        log.info("image removed", digest=digest, records=verdict.records)
    return verdict


async def _delete(
    containerd: Containerd, found: Found, names: Sequence[str], wanted: Callable[[], Collection[str]]
) -> str:
    """Delete these records; or why one of them stays, and the rest with it: what is left is whole."""
    judged = {record.name: record for record in found.records}
    targets = {record.target.digest for record in found.records}
    for name in names:
        record = await containerd.images.get(name)
        if record is None:
            continue
        # Since we looked, as by somebody else's pull: records hold everything.
        if what := taken_since(judged[name], record, targets):
            return f"{name} was {what} anew by somebody else"
        # Nothing is awaited between this and the deletion.
        if not targets.isdisjoint(wanted()):
            return f"{name} is wanted by now"
        try:
            await containerd.images.delete(name)
        except NotFound:
            continue
    return ""


async def find_image(containerd: Containerd, digest: str, snapshotter: str) -> Found:
    """Every record of the image, of other targets with the same config too."""
    records = await containerd.images.list()
    of_target = {record.name for record in records if record.target.digest == digest}
    ids = {name for name in of_target if is_of_id(name)}
    for name in sorted(of_target - ids):
        # The ID's record may point at another target by now.
        shown = await containerd.cri.image_status(name)
        if shown is not None:
            ids.add(shown.id)
    names = of_target | {record.name for record in await records_of(containerd, ids)} | ids
    tops = set()
    for config in ids:
        content = await containerd.content.info(config)
        if content is not None and f"{GC_SNAPSHOT}{snapshotter}" in content.labels:
            tops.add(content.labels[f"{GC_SNAPSHOT}{snapshotter}"])
    return Found(tuple(record for record in records if record.name in names), frozenset(ids), frozenset(tops))
