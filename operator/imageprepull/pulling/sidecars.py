"""What is known of the files of the spool, beside each: which bytes are good, of which boot, and who will come for them.

A file has an owner for every image whose next attempt is to find its bytes, named by the image's lease: whether that
lease still exists in the runtime is another matter, it expires. Who is done with a file, or gave its image up, takes
its name off; the file goes with the last one, and one without a sidecar is nobody's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import msgspec


class Sidecar(msgspec.Struct, frozen=True, omit_defaults=True):
    """Written after the bytes it vouches for. `lease` is the one owner that earlier versions knew."""

    digest: str
    size: int
    boot_id: str
    ranges: list[tuple[int, int]] = []
    owners: list[str] = []
    lease: str = ""

    @property
    def all_owners(self) -> set[str]:
        """Of any version."""
        return {*self.owners, self.lease} - {""}


def data_path(folder: Path, digest: str) -> Path:
    """Where the bytes of a blob are."""
    return folder / digest.replace(":", "-")


def sidecar_path(folder: Path, digest: str) -> Path:
    """Where its range map is."""
    return folder / f"{digest.replace(':', '-')}.json"


def _draft_path(folder: Path, digest: str) -> Path:
    """Where a range map is before it is complete."""
    return sidecar_path(folder, digest).with_suffix(".tmp")


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar at `path`, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sidecar)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Replace the old one in one step; without an owner nothing takes its place.

    Raises:
        OSError: the disk is full or fails; the old one stays.
    """
    if not sidecar.all_owners:
        sidecar_path(folder, sidecar.digest).unlink(missing_ok=True)
        return
    draft = _draft_path(folder, sidecar.digest)
    draft.write_bytes(msgspec.json.encode(sidecar))
    draft.replace(sidecar_path(folder, sidecar.digest))


def remove_spool(folder: Path, digest: str) -> None:
    """Delete a blob's bytes and range map; the map first, since it must never outlive what it vouches for."""
    sidecar_path(folder, digest).unlink(missing_ok=True)
    _draft_path(folder, digest).unlink(missing_ok=True)
    data_path(folder, digest).unlink(missing_ok=True)


def digests_of(folder: Path, owner: str) -> list[str]:
    """The blobs that `owner` would come for."""
    sidecars = [read_sidecar(path) for path in sorted(folder.glob("*.json"))]
    return [found.digest for found in sidecars if found is not None and owner in found.all_owners]


def all_owners(folder: Path) -> set[str]:
    """Whoever would come for any of the blobs. Blocks."""
    sidecars = [read_sidecar(path) for path in folder.glob("*.json")]
    return {owner for found in sidecars if found is not None for owner in found.all_owners}


def change_owners(
    folder: Path, digest: str, *, add: Collection[str] = (), drop: Collection[str] = ()
) -> None:
    """Put names on a file that nobody has open, and take others off; it goes with the last one."""
    found = read_sidecar(sidecar_path(folder, digest))
    owners = set() if found is None else (found.all_owners | set(add)) - set(drop)
    if found is None or not owners:
        remove_spool(folder, digest)
    elif owners != found.all_owners:
        _leave_to(folder, found, owners)


def remove_all_but(folder: Path, owners: Collection[str] | None, boot_id: str) -> list[str]:
    """Delete all spool files but those of this boot that one of `owners` will come for; the names deleted.

    None: it is not known yet who will come. Nothing may be downloading: a file without a sidecar is deleted too.
    """
    if not folder.is_dir():
        return []
    keep = set()
    for path in folder.glob("*.json"):
        found = read_sidecar(path)
        if found is None or found.boot_id != boot_id:
            continue
        coming = found.all_owners if owners is None else found.all_owners & set(owners)
        if coming:
            keep |= {path.name, path.stem}
            if coming != found.all_owners:
                _leave_to(folder, found, coming)
    removed = []
    for path in sorted(folder.glob("sha256-*")):
        if path.name not in keep:
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _leave_to(folder: Path, sidecar: Sidecar, owners: set[str]) -> None:
    # A full disk takes no new one. The old one names an owner too many, whom the next start of an agent takes off, or
    # one too few, who fetches for itself.
    with contextlib.suppress(OSError):
        write_sidecar(folder, msgspec.structs.replace(sidecar, owners=sorted(owners), lease=""))
