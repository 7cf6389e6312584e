"""Defects that are planted into a victim: the harness must find each, or it would find nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any


def unvouched() -> None:
    """Commit whatever a collection has left of a tree: no Stat after the exchange."""
    from imageprepull.pulling.chain import Chain  # noqa: PLC0415

    async def alive(self: Any, key: str) -> None:
        return

    Chain.check_alive = alive  # type: ignore[method-assign]


def leaked_lease() -> None:
    from imageprepull.pulling import image  # noqa: PLC0415

    async def keep(containerd: Any, lease: str) -> None:
        return

    image.drop_lease = keep  # type: ignore[assignment,attr-defined]


def leaked_staging() -> None:
    """The staging snapshot stays, and so that no collection takes it."""
    from imageprepull.pulling.chain import Chain  # noqa: PLC0415
    from imageprepull.pulling.staging import Staging  # noqa: PLC0415

    async def stay(self: Any) -> None:
        return

    plain = Chain.prepare_apart

    async def rooted(self: Any) -> Any:
        self._active_labels = {**self._active_labels, "containerd.io/gc.root": "leaked"}
        return await plain(self)

    Staging.close = stay  # type: ignore[method-assign]
    Chain.prepare_apart = rooted  # type: ignore[method-assign]


def leaked_spool() -> None:
    """The files of one blob stay in the spool."""
    from imageprepull.pulling import sidecars, spool  # noqa: PLC0415

    plain = sidecars.remove_spool
    kept: list[str] = []

    def keep(folder: Path, digest: str) -> None:
        if kept[:1] in ([], [digest]):
            kept[:] = [digest]
        else:
            plain(folder, digest)

    spool.remove_spool = sidecars.remove_spool = keep  # type: ignore[attr-defined]


def refetched_range() -> None:
    """A life forgets the first range that the one before has noted."""
    from imageprepull.pulling import spool  # noqa: PLC0415

    plain = spool.read_sidecar  # type: ignore[attr-defined]

    def forget(path: Path) -> Any:
        import msgspec  # noqa: PLC0415

        found = plain(path)
        return found and msgspec.structs.replace(found, ranges=[(s + 1, e) for s, e in found.ranges])

    spool.read_sidecar = forget  # type: ignore[attr-defined]


def unnoted_range() -> None:
    """The range map is written only when an attempt ends in good order."""
    from imageprepull.pulling.spool import SpoolFile  # noqa: PLC0415

    SpoolFile.note = lambda self: None  # type: ignore[method-assign]


def early_record() -> None:
    """The records are written before the layers are there."""
    from imageprepull.pulling import image  # noqa: PLC0415
    from imageprepull.pulling.records import write_records  # noqa: PLC0415

    plain = image.ImagePull._put_documents

    async def early(self: Any, containerd: Any, documents: Any) -> None:
        await plain(self, containerd, documents)
        await write_records(containerd, self._request.reference, documents, theirs=frozenset(), pin=False)

    image.ImagePull._put_documents = early  # type: ignore[assignment,method-assign]


def documents_again() -> None:
    """Every attempt asks the registry for manifest and config, whatever the runtime has."""
    from imageprepull.pulling import resolving  # noqa: PLC0415

    async def nothing(*_: Any) -> None:
        return

    resolving.read_local = nothing  # type: ignore[assignment,attr-defined]
    resolving.recorded = nothing  # type: ignore[assignment]


def hung() -> None:
    """Layers that never come."""
    from imageprepull.pulling.layers import LayerWork  # noqa: PLC0415

    async def never(self: Any) -> None:
        await asyncio.Event().wait()

    LayerWork.run = never  # type: ignore[method-assign]


def unkept_blob() -> None:
    """One layer's blob never comes into the content store."""
    from imageprepull.pulling.layer_blobs import LayerBlobs  # noqa: PLC0415

    plain = LayerBlobs.ingest
    asked: list[str] = []

    async def ingest(self: Any, containerd: Any, digest: str, *rest: Any, **options: Any) -> None:
        asked.append(digest)
        if len(asked) != 5:
            await plain(self, containerd, digest, *rest, **options)

    LayerBlobs.ingest = ingest  # type: ignore[method-assign]


def unlabelled_blobs() -> None:
    """The manifest does not name the layers' blobs to the runtime's collection."""
    from imageprepull.pulling import labels, records  # noqa: PLC0415

    def bare(manifest: Any, *, keep_layers: bool) -> dict[str, str]:
        return labels.manifest_labels(manifest, keep_layers=False)

    records.manifest_labels = bare  # type: ignore[attr-defined]


def unmanaged_records() -> None:
    """Records without our label: `Delete` would never remove the image."""
    from imageprepull.pulling import labels, records  # noqa: PLC0415

    plain = labels.record_labels

    def bare(**options: Any) -> dict[str, str]:
        return {key: value for key, value in plain(**options).items() if key != labels.MANAGED}

    records.record_labels = bare  # type: ignore[attr-defined]


def unmarked_pins() -> None:
    """Pins without our label: they would be taken for somebody else's, and stay for ever."""
    from imageprepull.pulling import labels, records  # noqa: PLC0415

    plain = labels.record_labels

    def bare(**options: Any) -> dict[str, str]:
        return {key: value for key, value in plain(**options).items() if key != labels.PINNED}

    records.record_labels = bare  # type: ignore[attr-defined]


def leaked_mount() -> None:
    """Something stays mounted on the runtime's disk."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    folder = next(one.removeprefix("--folder=") for one in sys.argv if one.startswith("--folder="))
    Path(f"{folder}/leaked").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "leaked", f"{folder}/leaked"], check=True)


def orphan() -> None:
    """A process that has left the session outlives the agent."""
    import subprocess  # noqa: PLC0415

    null = subprocess.DEVNULL
    subprocess.Popen(["sleep", "60"], start_new_session=True, stdin=null, stdout=null, stderr=null)


def unwritten() -> None:
    """Layers are believed without having been written to disk. Only a power cut shows it."""
    from imageprepull.pulling import durability  # noqa: PLC0415

    def nothing(*_: Any, **__: Any) -> None:
        return

    durability.sync_file_system = nothing


DEFECTS: dict[str, Callable[[], None]] = {
    found.__name__.replace("_", "-"): found
    for found in (
        unvouched,
        leaked_lease,
        leaked_staging,
        leaked_spool,
        refetched_range,
        unnoted_range,
        early_record,
        documents_again,
        hung,
        unkept_blob,
        unlabelled_blobs,
        unmanaged_records,
        unmarked_pins,
        leaked_mount,
        orphan,
        unwritten,
    )
}


def plant(name: str) -> None:
    DEFECTS[name]()
