"""Defects that are planted into a victim: the harness must find each, or it would find nothing."""

from __future__ import annotations

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
        await write_records(containerd, self._request.reference, documents, pin=False)

    image.ImagePull._put_documents = early  # type: ignore[assignment,method-assign]


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
    )
}


def plant(name: str) -> None:
    DEFECTS[name]()
