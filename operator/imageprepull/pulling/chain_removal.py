"""Removing chains that are not to be believed, with every snapshot and image record that stands on them.

Never what a container stands on: the runtime lets an active snapshot be removed under a process that runs in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import structlog

from imageprepull.pulling.forgotten import collect_forgotten, forgotten
from imageprepull.pulling.labels import EXTRACT, GC_SNAPSHOT, LEASE
from imageprepull.pulling.leases import SNAPSHOTS, short_lease
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

    A container's snapshot has the container's ID as its key.
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
        return f"somebody else's lease or snapshot keeps it ({user}); tried again later"
    return f"{user} uses it; delete the pods that run on this image, and the container with them"


def doomed_with(roots: Collection[str], snapshots: Iterable[SnapshotInfo]) -> Doomed:
    """What goes with `roots`: they and all that stand on them, but for what somebody works in. Pure.

    An active snapshot that bears our lease's label is a dead attempt's; every other one is a container's or the
    runtime's own pull.
    """
    known = {snapshot.name: snapshot for snapshot in snapshots}
    order = _standing_on(roots, known)
    removable = []
    users: dict[str, str] = {}
    for name in order:
        snapshot = known[name]
        works = snapshot.kind is not SnapshotKind.COMMITTED and LEASE not in snapshot.labels
        user = name if works else users.get(name)
        if user is None:
            removable.append(name)
        else:
            # Whoever works on a child works on its parents.
            users.setdefault(name, user)
            users.setdefault(snapshot.parent, user)
    in_use = {
        name: users[name] for name in order if name in users and known[name].kind is SnapshotKind.COMMITTED
    }
    return Doomed(removable, in_use)


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
    has happened before, by a removed image, a collection has to take the parent too.

    Raises:
        RuntimeFault: the runtime does not answer; call again.
    """
    doomed = doomed_with(roots, await containerd.snapshots.list(snapshotter, []))
    configs = await _configs_of(containerd, snapshotter, doomed.removable)
    found = await records_of(containerd, configs)
    records = [record.name for record in found]
    async with short_lease(containerd, "remove", labels) as leased:
        await keep({record.target.digest for record in found})
        for name in doomed.removable:
            await leased.leases.add_resource(leased.lease, f"{SNAPSHOTS}{snapshotter}", name)
        for name in records:
            with contextlib.suppress(NotFound):
                await leased.images.delete(name)
        refused = await _remove(leased, snapshotter, doomed.removable)
    in_use = dict(doomed.in_use)
    if refused:
        # Somebody began to stand on it since it was listed, or it has been forgotten.
        left = forgotten(list(refused), await containerd.snapshots.list(snapshotter, []))
        went = await collect_forgotten(containerd, snapshotter, left, configs, labels) if left else []
        in_use |= {name: said for name, said in refused.items() if name not in went}
    removed = [name for name in doomed.removable if name not in in_use]
    if removed or in_use:
        log.warning("layers are not believed", why=why, removed=len(removed), images=records, in_use=in_use)
    return Removed(removed, records, in_use)


async def _configs_of(containerd: Containerd, snapshotter: str, chains: Collection[str]) -> set[str]:
    """Blobs that keep these chains."""
    label = f"{GC_SNAPSHOT}{snapshotter}"
    blobs = await containerd.content.list([f'labels."{label}"'])
    return {blob.digest for blob in blobs if blob.labels.get(label) in chains}


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


async def records_of(containerd: Containerd, configs: AbstractSet[str]) -> list[ImageRecord]:
    """Records whose target leads to one of the configs, by the labels that the collector follows."""
    if not configs:
        return []
    parents: dict[str, set[str]] = {}
    for blob in await containerd.content.list(['labels."containerd.io/gc.ref.content.config"']):
        parents.setdefault(blob.labels["containerd.io/gc.ref.content.config"], set()).add(blob.digest)
    manifests = set().union(*(parents.get(config, set()) for config in configs))
    targets = set(manifests)
    for record in await containerd.images.list():
        if record.target.digest not in targets and record.target.is_index:
            found = await containerd.content.info(record.target.digest)
            if found is not None and manifests & set(found.labels.values()):
                targets.add(record.target.digest)
    return [record for record in await containerd.images.list() if record.target.digest in targets | configs]
