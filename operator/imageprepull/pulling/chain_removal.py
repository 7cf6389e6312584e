"""Removing chains that are not to be believed, with every snapshot and image record that stands on them.

Never what a container stands on: the runtime lets an active snapshot be removed under a process that runs in it. Nor
what stands beside it on the same such layer: that layer stays, and nothing on it can be made anew until it can go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from imageprepull.pulling.forgotten import collect_forgotten, forgotten
from imageprepull.pulling.labels import EXTRACT, GC_SNAPSHOT, LEASE
from imageprepull.pulling.leading import records_by_config
from imageprepull.pulling.leases import SNAPSHOTS, short_lease
from imageprepull.pulling.ownership import deletion_order, taken_since
from imageprepull.pulling.provenance import remember, to_remember
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound, PreconditionFailed
from imageprepull.runtime.images import ImageRecord
from imageprepull.runtime.snapshots import SnapshotInfo, SnapshotKind

log = structlog.get_logger(__name__)

Keep = Callable[[Collection[str]], Awaitable[None]]
"""Told the top-level digests of images whose records are about to go: what is to outlive them needs a lease by then."""


async def keep_nothing(_: Collection[str]) -> None:
    """Let the runtime collect what the records held."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """`removable`: children before parents. `in_use`: chains that stay, each with the key of a snapshot on them.

    A container's snapshot has the container's ID as its key. Who is no snapshot is said in words, with spaces.
    """

    removable: list[str] = field(default_factory=list)
    in_use: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Removed:
    """What went, and `in_use` as in `Doomed`; where no snapshot is known, with the runtime's own words."""

    snapshots: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    in_use: Mapping[str, str] = field(default_factory=dict)


def what_stays_for(user: str) -> str:
    """Why a layer stays, by what `in_use` says of it, and what to do, in words."""
    if user.startswith(EXTRACT):
        return (
            f"a pull by the runtime itself unpacks on it (snapshot {user}); if that pull has died, its lease keeps it for up "
            "to a day, and then the layer is replaced"
        )
    if " " in user:
        return f"somebody else keeps it ({user}); tried again later"
    return f"{user} uses it; delete the pods that run on this image, and the container with them"


def doomed_with(
    roots: Collection[str], snapshots: Iterable[SnapshotInfo], taken: Mapping[str, str] | None = None
) -> Doomed:
    """What goes with `roots`: they and all that stand on them. Pure.

    A root on which somebody works stays with all that stands on it, other roots too: whoever uses a sibling would lose
    it, again at each attempt, and a pull could not make it anew on a root that is not to be believed. An active snapshot
    that bears our lease's label is a dead attempt's; every other one is a container's or the runtime's own pull.
    `taken`: chains of images that somebody took when the records beside them had gone, and who, in words. They stay
    with what is below them.
    """
    known = {snapshot.name: snapshot for snapshot in snapshots}
    order = _standing_on(roots, known)
    users = {
        name: name
        for name in order
        if known[name].kind is not SnapshotKind.COMMITTED and LEASE not in known[name].labels
    }
    _hand_down(users, order, known)
    staying: dict[str, str] = {}
    for name in reversed(order):
        below = staying.get(known[name].parent)
        if below is not None or (name in roots and name in users):
            staying[name] = users.get(name, below or name)
    for name, user in (taken or {}).items():
        staying.setdefault(name, user)
    _hand_down(staying, order, known)
    return Doomed(
        removable=[name for name in order if name not in staying],
        in_use={
            name: staying[name]
            for name in order
            if name in staying and known[name].kind is SnapshotKind.COMMITTED
        },
    )


def _hand_down(users: dict[str, str], order: Sequence[str], known: Mapping[str, SnapshotInfo]) -> None:
    """Whoever works on a child works on its parents."""
    for name in order:
        if name in users:
            users.setdefault(known[name].parent, users[name])


def _standing_on(roots: Collection[str], known: Mapping[str, SnapshotInfo]) -> list[str]:
    """`roots` and all their descendants, children before parents."""
    children: dict[str, list[str]] = {}
    for snapshot in known.values():
        children.setdefault(snapshot.parent, []).append(snapshot.name)
    order: list[str] = []
    seen: set[str] = set()
    pending = [(name, False) for name in sorted(roots) if name in known]
    while pending:
        name, below_done = pending.pop()
        if below_done:
            order.append(name)
        elif name not in seen:
            seen.add(name)
            pending.append((name, True))
            pending.extend((child, False) for child in children.get(name, ()))
    return order


async def remove_chains(
    containerd: Containerd,
    snapshotter: str,
    roots: Collection[str],
    why: str,
    labels: Mapping[str, str],
    *,
    keep: Keep = keep_nothing,
) -> Removed:
    """Remove `roots`, what stands on them, and the records of images made of any; `why` is for the log.

    A lease of its own (`labels` say whose) holds the chains meanwhile: without their records they would be collected,
    and a collection that takes a child forgets to tell its parent, which the runtime then never removes. Where that
    has happened before, by a removed image, a collection has to take the parent too. Images that somebody else takes
    meanwhile stay, with their layers (`in_use`): call again.

    Raises:
        RuntimeFault: the runtime does not answer; call again.
    """
    snapshots = await containerd.snapshots.list(snapshotter, [])
    doomed = doomed_with(roots, snapshots)
    chain_of = await _configs_of(containerd, snapshotter, doomed.removable)
    found = await records_by_config(containerd, chain_of.keys())
    async with short_lease(containerd, "remove", labels) as leased:
        await keep({record.target.digest for records in found.values() for record in records})
        for name in doomed.removable:
            await leased.leases.add_resource(leased.lease, f"{SNAPSHOTS}{snapshotter}", name)
        # Before the first of them goes: whoever brings the image back must know that it is not ours.
        await remember(leased, to_remember(found.values()))
        records, staying = await _delete_records(leased, found)
        if staying:
            # What an image stands on stays with it: records without their layers would be worse than these.
            taken = {
                chain_of[config]: f"the image {name}, which came or changed meanwhile"
                for config, name in staying.items()
            }
            doomed = doomed_with(roots, snapshots, taken)
        refused = await _remove(leased, snapshotter, doomed.removable)
    in_use = dict(doomed.in_use)
    if refused:
        # Somebody began to stand on it since it was listed, or it has been forgotten.
        left = forgotten(list(refused), await containerd.snapshots.list(snapshotter, []))
        gone = {config: chain for config, chain in chain_of.items() if config not in staying}
        went = await collect_forgotten(containerd, snapshotter, left, gone, labels) if left else []
        in_use |= {name: said for name, said in refused.items() if name not in went}
    removed = [name for name in doomed.removable if name not in in_use]
    if removed or in_use:
        log.warning("layers are not believed", why=why, removed=len(removed), images=records, in_use=in_use)
    return Removed(removed, records, in_use)


async def _configs_of(containerd: Containerd, snapshotter: str, chains: Collection[str]) -> dict[str, str]:
    """Blobs that keep these chains, each with its chain."""
    label = f"{GC_SNAPSHOT}{snapshotter}"
    blobs = await containerd.content.list([f'labels."{label}"'])
    return {blob.digest: blob.labels[label] for blob in blobs if blob.labels.get(label) in chains}


async def _delete_records(
    containerd: Containerd, found: Mapping[str, Sequence[ImageRecord]]
) -> tuple[list[str], dict[str, str]]:
    """Delete the records of these configs, whosever they are; the names, and by config a record that stays.

    What somebody else has made of a record since it was found has not been judged, and stays with all that is left of
    its image, until it is found again.
    """
    records = {record.name: record for records in found.values() for record in records}
    leads: dict[str, set[str]] = {}
    for config, its in found.items():
        for record in its:
            leads.setdefault(record.target.digest, set()).add(config)
    deleted: list[str] = []
    staying: dict[str, str] = {}
    for judged in deletion_order(records.values()):
        if not staying.keys().isdisjoint(leads[judged.target.digest]):
            continue
        now = await containerd.images.get(judged.name)
        if now is None:
            continue
        if taken_since(judged, now, leads.keys()):
            staying |= dict.fromkeys(leads.get(now.target.digest, ()), judged.name)
            continue
        with contextlib.suppress(NotFound):
            await containerd.images.delete(judged.name)
        deleted.append(judged.name)
    # Names that came meanwhile.
    for config, left in (await records_by_config(containerd, found.keys())).items():
        if left:
            staying.setdefault(config, left[0].name)
    return deleted, staying


async def _remove(containerd: Containerd, snapshotter: str, names: Iterable[str]) -> dict[str, str]:
    """Remove snapshots; those that the runtime says have children, with its words."""
    refused = {}
    for name in names:
        try:
            await containerd.snapshots.remove(snapshotter, name)
        except NotFound:
            continue
        except PreconditionFailed as error:
            refused[name] = str(error)
    return refused
