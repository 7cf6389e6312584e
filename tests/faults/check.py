"""Everything that must hold on the whole node after a pull, however often it was killed. One complaint per line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.manifest import parse_manifest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.labels import (
    CRI_MANAGED,
    CRI_PINNED,
    MANAGED,
    MEMORY,
    PINNED,
    UNSYNCED,
    config_labels,
    manifest_labels,
)
from imageprepull.pulling.records import record_names
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound
from imageprepull.runtime.snapshots import SnapshotKind
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage, leftovers
from tests.containerd.differential.trees import differences, scan
from tests.containerd.layer_trees import layer_folders
from tests.containerd.pull_bench import start_daemon
from tests.faults.node import Machine, connected
from tests.testbed.daemon import run
from tests.testbed.images import BuiltImage

_SHOWN = 5


async def complaints(
    machine: Machine,
    containerd: Containerd,
    image: BuiltImage,
    reference: str,
    since: float,
    *,
    kept: Collection[str] = (),
    pinned: bool = False,
) -> list[str]:
    """Of a machine with an idle agent, whose pull began at `since` (seconds since 1970).

    `kept`: digests of layers whose blobs the content store must have. An agent that dies between an image's records
    and the end of its pull leaves them out. `pinned`: whether the kubelet's collection is to leave the image alone.
    """
    found = await _leftovers(machine, containerd, "")
    found += await _image(containerd, image, reference, pinned=pinned)
    found += await _kept(containerd, kept)
    if not await _layers(containerd, image, synced=False):
        found += await _trees(machine, containerd, image, since)
    await _make_dirty(containerd)
    found += await _leftovers(machine, containerd, " after a collection")
    found += await _files(machine, containerd)
    # What the collection took was not held.
    found += await _image(containerd, image, reference, pinned=pinned)
    found += await _kept(containerd, kept)
    return found


async def empty(machine: Machine, containerd: Containerd) -> list[str]:
    """Remove the image: then nothing at all may be left, but what is remembered until an order ends or for a while."""
    for lease in await containerd.leases.list():
        if MEMORY in lease.labels:
            await containerd.leases.delete(lease.id)
    for record in await containerd.images.list():
        await containerd.images.delete(record.name)
    await _make_dirty(containerd)
    found = await _leftovers(machine, containerd, " without the image")
    found += [
        f"snapshot {left.name} without the image" for left in await containerd.snapshots.list(SNAPSHOTTER)
    ]
    found += [f"blob {left.digest} without the image" for left in await containerd.content.list()]
    return found + await _files(machine, containerd)


async def clear(machine: Machine) -> None:
    """Make a machine empty that may hold anything, after a round that went wrong."""
    if not machine.daemon.running:
        await start_daemon(machine)  # type: ignore[arg-type]
    async with connected(machine) as containerd:
        for lease in await containerd.leases.list():
            await containerd.leases.delete(lease.id)
        for ingest in await containerd.content.list_ingests():
            await containerd.content.abort(ingest.ref)
        for record in await containerd.images.list():
            await containerd.images.delete(record.name)
        while left := await containerd.snapshots.list(SNAPSHOTTER):
            parents = {snapshot.parent for snapshot in left}
            for snapshot in left:
                if snapshot.name not in parents:
                    with contextlib.suppress(NotFound):  # collected meanwhile
                        await containerd.snapshots.remove(SNAPSHOTTER, snapshot.name)
        await empty(machine, containerd)
    for name in machine.spooled():
        (machine.spool / name).unlink()
    for point in mounts(machine):
        await asyncio.to_thread(run, "umount", point)


def mounts(machine: Machine) -> set[str]:
    """Mount points on the machine's disk, the daemon's own for a moment's unpacking excepted."""
    own = f"{machine.daemon.root}/tmpmounts"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = {line.split()[4] for line in lines}
    return {point for point in points if point.startswith(f"{machine.folder}/") and not point.startswith(own)}


async def early_records(containerd: Containerd, image: BuiltImage, reference: str) -> list[str]:
    """Image records over layers that are not there: the CRI would show such an image, and no container would start."""
    names = record_names(Reference.parse(reference), image.digest, image.config.digest)
    if not any([await containerd.images.get(name) for name in names]):
        return []
    return [f"{line}, but a record is there" for line in await _layers(containerd, image, synced=False)]


async def _leftovers(machine: Machine, containerd: Containerd, when: str) -> list[str]:
    left = await leftovers(containerd)
    found = [f"lease {name} is left{when}" for name in left.leases]
    found += [f"ingest {name} is left{when}" for name in left.ingests]
    found += [f"active snapshot {name} is left{when}" for name in left.active_snapshots]
    return found + [f"spool file {name} is left{when}" for name in machine.spooled()]


async def _image(containerd: Containerd, image: BuiltImage, reference: str, *, pinned: bool) -> list[str]:
    found = []
    pins = {CRI_PINNED: "pinned", PINNED: "true"}
    for name in record_names(Reference.parse(reference), image.digest, image.config.digest):
        record = await containerd.images.get(name)
        if record is None or record.target.digest != image.digest:
            found.append(f"record {name} is {record and record.target.digest}")
        elif lacking := {CRI_MANAGED, MANAGED} - record.labels.keys():
            found.append(f"record {name} lacks the labels {sorted(lacking)}")
        elif (has := pins.items() & record.labels.items()) != (pins.items() if pinned else set()):
            found.append(f"record {name} has the pins {sorted(has)}")
        shown = await containerd.cri.image_status(name)
        if shown is None or shown.id != image.config.digest:
            found.append(f"the CRI shows {name} as {shown and shown.id}")
    manifest = parse_manifest(image.manifest.read())
    labels = {
        image.manifest.digest: manifest_labels(manifest, keep_layers=True),
        image.config.digest: config_labels(SNAPSHOTTER, image.chain_ids[-1]),
    }
    for blob in (image.manifest, image.config):
        info = await containerd.content.info(blob.digest)
        if info is None or await containerd.content.read(blob.digest) != blob.read():
            found.append(f"document {blob.digest} is missing or damaged")
        elif lost := labels[blob.digest].items() - info.labels.items():
            found.append(f"document {blob.digest} lacks the labels {sorted(lost)}")
    return found + await _layers(containerd, image, synced=True)


async def _kept(containerd: Containerd, digests: Collection[str]) -> list[str]:
    """That the files of recorded ones are whole is looked at with the disk."""
    there = {info.digest for info in await containerd.content.list()}
    return [f"layer blob {digest} is not kept" for digest in digests if digest not in there]


async def _layers(containerd: Containerd, image: BuiltImage, *, synced: bool) -> list[str]:
    found = []
    for number, chain_id in enumerate(image.chain_ids):
        snapshot = await containerd.snapshots.stat(SNAPSHOTTER, chain_id)
        if snapshot is None or snapshot.kind is not SnapshotKind.COMMITTED:
            found.append(f"layer {number} is not committed")
        elif synced and UNSYNCED in snapshot.labels:
            found.append(f"layer {number} is labelled as unsynced")
    return found


async def _trees(machine: Machine, containerd: Containerd, image: BuiltImage, since: float) -> list[str]:
    """The directories of the chain against containerd's own."""
    folders = await layer_folders(containerd, image.chain_ids[-1])
    found = []
    for number, (folder, wanted) in enumerate(zip(folders, machine.reference, strict=True)):
        ours = await asyncio.to_thread(scan, folder, since)
        found += [f"layer {number}: {line}" for line in differences(ours, wanted)]
    return found


async def _files(machine: Machine, containerd: Containerd) -> list[str]:
    """The disk against the records, in both directions."""
    recorded = {blob.digest.removeprefix("sha256:") for blob in await containerd.content.list()}
    there = _names(machine.blobs)
    found = [f"blob file {name} that nothing records" for name in sorted(there - recorded)]
    found += [f"blob {name} without its file" for name in sorted(recorded - there)]
    for name in sorted(there & recorded):
        if await asyncio.to_thread(_digest, machine.blobs / name) != name:
            found.append(f"blob file {name} is damaged")
    found += [f"ingest folder {name}" for name in sorted(_names(machine.ingests))]
    snapshots = await containerd.snapshots.list(SNAPSHOTTER)
    folders = _names(machine.snapshots)
    if len(folders) != len(snapshots):
        found.append(f"{len(folders)} snapshot folders for {len(snapshots)} snapshots")
    return found


async def _make_dirty(containerd: Containerd) -> None:
    """Let a collection look at the disk: the daemon does so only after something was removed."""
    await containerd.leases.create("dirty", {}, 60)
    leased = containerd.with_lease("dirty")
    await leased.snapshots.prepare(SNAPSHOTTER, "dirty", "", {})
    await leased.snapshots.remove(SNAPSHOTTER, "dirty")
    body = b"dirty"
    blob = Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(body).hexdigest()}", len(body))
    await leased.content.put("dirty", blob, body, {})
    await containerd.leases.delete("dirty")
    await collect_garbage(containerd)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first(lines: Iterable[str]) -> str:
    """The first few, for a message."""
    return "\n".join(itertools.islice(lines, _SHOWN))
