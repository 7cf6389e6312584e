"""Where the files of a snapshot are, read from its mounts: the daemon's paths, as this process sees them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imageprepull.runtime.mounts import Mount


class UnknownMounts(Exception):
    """Mounts that are not those of an overlayfs snapshot; the message says what is odd."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The snapshotter's folder: `daemon` as the runtime names it, `ours` where this process finds it."""

    daemon: PurePosixPath
    ours: Path

    def local(self, path: str) -> Path:
        """A path of the daemon's, as ours.

        Raises:
            UnknownMounts: it is not below the snapshotter's folder.
        """
        named = PurePosixPath(path)
        if ".." in named.parts or not named.is_relative_to(self.daemon) or named == self.daemon:
            raise UnknownMounts(f"{path} is not below {self.daemon}")
        return self.ours / named.relative_to(self.daemon)


@dataclass(frozen=True, slots=True)
class LayerFolders:
    """`upper` is the snapshot's own directory; `below` are those of its parents as the daemon names them, top first."""

    upper: Path
    roots: Roots
    below: tuple[str, ...] = ()

    def lowers(self) -> list[Path]:
        """The parents' directories. Few layers need them: hundreds of paths are not made for each in vain.

        Raises:
            UnknownMounts: one is not below the snapshotter's folder.
        """
        return [self.roots.local(folder) for folder in self.below]


def layer_folders(mounts: Sequence[Mount], roots: Roots) -> LayerFolders:
    """The directories of an active snapshot.

    Without a parent overlayfs gives a bind mount, on top of some an overlay
    (containerd `plugins/snapshots/overlay/overlay.go`, mounts).

    Raises:
        UnknownMounts: anything else.
    """
    if len(mounts) != 1:
        raise UnknownMounts(f"{len(mounts)} mounts instead of one")
    (mount,) = mounts
    if mount.type == "bind":
        if "rw" not in mount.options:
            raise UnknownMounts("a bind mount that may not be written to")
        return LayerFolders(roots.local(mount.source), roots)
    if mount.type != "overlay":
        raise UnknownMounts(f"a mount of type {mount.type}")
    upper, lower = _option(mount, "upperdir"), _option(mount, "lowerdir")
    # What an ID-mapped or unprivileged overlay shows is not what its directories hold.
    odd = [
        option for option in mount.options if option.partition("=")[0] in {"userxattr", "uidmap", "gidmap"}
    ]
    if odd:
        raise UnknownMounts(f"an overlay with the option {odd[0]}")
    return LayerFolders(roots.local(upper), roots, tuple(lower.split(":")))


def view_folders(mounts: Sequence[Mount], roots: Roots) -> list[Path]:
    """The directories of the chain that a view shows, top first.

    Raises:
        UnknownMounts: the mounts are not those of an overlayfs view.
    """
    if len(mounts) != 1:
        raise UnknownMounts(f"{len(mounts)} mounts instead of one")
    (mount,) = mounts
    if mount.type == "bind":
        return [roots.local(mount.source)]
    if mount.type != "overlay":
        raise UnknownMounts(f"a mount of type {mount.type}")
    return [roots.local(folder) for folder in _option(mount, "lowerdir").split(":")]


def _option(mount: Mount, name: str) -> str:
    values = [option.removeprefix(f"{name}=") for option in mount.options if option.startswith(f"{name}=")]
    if len(values) != 1 or not values[0] or "\\" in values[0]:
        raise UnknownMounts(f"an overlay with {name} {values!r}")
    return values[0]
