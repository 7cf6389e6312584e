"""The entries of one layer become files under the working directory, by the rules of containerd's apply.

Two rule books: layer 0 is applied as containerd applies to a plain directory (AUFS whiteouts remove), all others as
it applies to an overlay's upper directory (whiteouts become devices, opaque markers attributes). Source of the
rules: containerd `pkg/archive/tar.go`, `tar_opts_linux.go`, and comparison with both daemons.
"""

from __future__ import annotations

import errno
import os
import stat

from imageprepull.unpacking.archive import Archive
from imageprepull.unpacking.attributes import ACL_DEFAULT, owner, set_all, set_xattrs, times
from imageprepull.unpacking.directory_times import DirectoryTimes
from imageprepull.unpacking.headers import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    LINK,
    PAX_GLOBAL,
    REGULAR,
    SYMLINK,
    Header,
)
from imageprepull.unpacking.implicit import ImplicitDirectories
from imageprepull.unpacking.jobs import MORE_DIRECTORIES, MOST_REMEMBERED, Limits, Refused
from imageprepull.unpacking.paths import clean, join, parent_of, root_path
from imageprepull.unpacking.removal import Removed, remove_tree, walk

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = {BLOCK_DEVICE: stat.S_IFBLK, CHAR: stat.S_IFCHR, FIFO: stat.S_IFIFO}
_UINT32 = (1 << 32) - 1
_MOST_RESOLVED_BYTES = 4 << 20
_RECORD_BYTES = 300
"""Memory of what is known of a directory beside its path, about."""
_SURELY_SHORT = 3584
"""Bytes. The runtime puts its own folder before each name, and the kernel takes 4095 in all."""


class Tree:
    """One layer under the working directory, which must be empty. `add` per entry, then `finish`."""

    def __init__(
        self, archive: Archive, *, bottom: bool, limits: Limits, remembered: int = MOST_REMEMBERED
    ) -> None:
        self._archive = archive
        self._bottom = bottom
        self._limits = limits
        self._remembered = remembered
        self._directories = DirectoryTimes()
        # Whether something that paths lead through was removed.
        self._rerouted = False
        self._resolved: dict[bytes, bytes] = {b"": b""}
        self._opaque: set[bytes] = set()
        # Listed paths that were removed: containerd still takes what comes there again for listed.
        self._ghosts: set[bytes] = set()
        # Whether some directory hands owner or access lists on: then nothing may be left out.
        self._inheriting = False
        self.implicit = ImplicitDirectories()
        self._resolved_bytes = self._implied_bytes = 0
        self.entries = 0
        self._sparse_bytes = 0

    def add(self, header: Header) -> None:
        """Make what an entry asks for. Raises Refused, OSError."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise Refused("TooManyEntries", f"more than {self._limits.entries} entries", final=True)
        located = self._locate(header)
        if located is None:
            return  # the root itself: its attributes are never those of the tar.
        name, parent, base = located
        path = parent + b"/" + base if parent else base
        if base.startswith(WHITEOUT):
            self._whiteout(header, parent, base)
            return
        kind = header.type
        if kind == REGULAR:
            self._file(header, parent, path)
        elif kind == DIRECTORY:
            self._directory(header, name, parent, path)
        elif kind == SYMLINK:
            self._symlink(header, parent, path)
        else:
            self._other(header, parent, path)

    def _locate(self, header: Header) -> tuple[bytes, bytes, bytes] | None:
        """The clean name, its parent directory as it is on disk, and its last component; None for the root."""
        name = header.name
        if len(name) > self._limits.path_bytes or len(header.linkname) > self._limits.path_bytes:
            raise Refused(
                "NameTooLong", f"a name of more than {self._limits.path_bytes} bytes", entry=name, final=True
            )
        if len(name) > _SURELY_SHORT:
            raise Refused("Unsupported", "a name that may be too long where the runtime keeps it", entry=name)
        # The usual spelling needs no cleaning.
        name = name.removeprefix(b"./").removesuffix(b"/")
        if name.startswith((b".", b"/")) or b"//" in name or b"/." in name or not name or name[-1:] == b"/":
            name = clean(header.name)
        head, slash, base = name.rpartition(b"/")
        if base in (b".", b"..", b""):
            return None
        if slash and not head:
            head = b"/"
        parent = self._resolved.get(head)
        if parent is None:
            parent = self._parent(head)
        return name, parent, base

    def finish(self) -> None:
        """Set the times of directories: all that was made in them has changed them. Raises Refused, OSError."""
        for name, stamps, moved in self._directories:
            path = name
            if self._rerouted or moved:
                path = root_path(name) or b"."
                self.implicit.timed(path)
            os.utime(path, ns=stamps, follow_symlinks=False)

    def _parent(self, head: bytes) -> bytes:
        """Where a parent directory is, made where it is missing."""
        resolved = root_path(head)
        self._make_parents(resolved)
        self._know(head, resolved)
        return resolved

    def _know(self, name: bytes, path: bytes) -> None:
        """Remember where a directory is; forgetting costs a few calls, keeping all of them memory without end."""
        self._resolved_bytes += len(name) + len(path) + _RECORD_BYTES
        if self._resolved_bytes > _MOST_RESOLVED_BYTES:
            self._resolved, self._resolved_bytes = {b"": b""}, 0
        self._resolved[name] = path

    def _check_memory(self) -> None:
        held = self._directories.bytes_held + self._implied_bytes
        if held > self._limits.remembered_bytes:
            raise Refused(
                "TooManyDirectories",
                f"directories whose paths take more than {self._limits.remembered_bytes} bytes",
                final=True,
            )
        if held > self._remembered:
            raise Refused(
                MORE_DIRECTORIES, f"directories whose paths take more than {self._remembered} bytes"
            )

    def _make_parents(self, path: bytes) -> None:
        missing = []
        while path:
            try:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(path))
                break
            except FileNotFoundError:
                missing.append(path)
                path = parent_of(path)
        for directory in reversed(missing):
            os.mkdir(directory, 0o755)
            if self._inheriting:
                os.chmod(directory, 0o755)
            self.implicit.used(parent_of(directory))
            self.implicit.made(directory)
            self._implied_bytes += len(directory) + _RECORD_BYTES
            self._check_memory()
            if directory in self._ghosts:
                self.implicit.listed(directory)

    def _file(self, header: Header, parent: bytes, path: bytes) -> None:
        mode = header.mode & 0o7777
        try:
            descriptor = os.open(path, _CREATE, mode)
        except FileExistsError:
            self._remove(path)
            descriptor = os.open(path, _CREATE, mode)
        try:
            if header.size or header.pax:
                self._copy(header, descriptor)
            plain = not (header.uid or header.gid or self._inheriting)
            if not plain:
                os.fchown(descriptor, *self._owner(header, parent))
            changed = header.pax and set_xattrs(descriptor, header)
            if not plain or changed or mode & 0o6000:
                # Writing and a new owner take setuid away, an access list changes the mode.
                os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=times(header))
        finally:
            os.close(descriptor)
        if self.implicit:
            self.implicit.used(parent)

    def _copy(self, header: Header, descriptor: int) -> None:
        if self._archive.is_sparse:
            # Holes are in no stream that is counted, and cost the runtime's own unpacker all they promise.
            self._sparse_bytes += header.size
            if self._sparse_bytes > self._limits.unpacked_bytes:
                message = f"sparse files of more than {self._limits.unpacked_bytes} bytes"
                raise Refused("LayerTooLarge", message, entry=header.name, final=True)
        self._archive.copy(descriptor)

    def _directory(self, header: Header, name: bytes, parent: bytes, path: bytes) -> None:
        mode = header.mode & 0o7777
        fresh = True
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                fresh = False
            else:
                self._remove(path)
                os.mkdir(path, mode)
        if not fresh or header.uid or header.gid or self._inheriting:
            os.chown(path, *self._owner(header, parent), follow_symlinks=False)
        changed = set_xattrs(path, header) if header.pax else []
        if ACL_DEFAULT in changed:
            self._inheriting = True
        if not fresh or changed or mode & 0o6000 or self._inheriting:
            os.chmod(path, mode)
        if mode & stat.S_ISGID:
            self._inheriting = True
        stamps = times(header)
        if name != path:
            # A link on the way may lead elsewhere in the end.
            os.utime(path, ns=stamps, follow_symlinks=False)
        else:
            self._know(path, path)
        self._directories.add(name, stamps, moved=name != path)
        self._check_memory()
        if self.implicit:
            if fresh:
                self.implicit.used(parent)
            self.implicit.listed(path, owner(header))

    def _other(self, header: Header, parent: bytes, path: bytes) -> None:
        """Links, devices, pipes; rare enough to look first, as containerd does."""
        kind = header.type
        self._remove(path)
        if kind == PAX_GLOBAL:
            if self._bottom:
                self._ghosts.add(path)
            return
        if kind == LINK:
            head, _, base = header.linkname.rpartition(b"/")
            directory = root_path(head + b"/") if head or header.linkname.startswith(b"/") else b""
            os.link(join(directory, base) or b".", path, follow_symlinks=False)
        elif kind in _DEVICES:
            os.mknod(path, _DEVICES[kind] | (header.mode & 0o7777), self._device(header))
        else:
            raise Refused("InvalidLayer", f"an entry of the unknown type {chr(kind)!r}", entry=header.name)
        if kind != LINK:
            self._owner(header, parent)
        set_all(path, header)
        self.implicit.used(parent)

    def _symlink(self, header: Header, parent: bytes, path: bytes) -> None:
        try:
            os.symlink(header.linkname, path)
        except FileExistsError:
            self._remove(path)
            os.symlink(header.linkname, path)
        if header.uid or header.gid or self._inheriting:
            os.chown(path, *self._owner(header, parent), follow_symlinks=False)
        if header.pax:
            set_xattrs(path, header)
        os.utime(path, ns=times(header), follow_symlinks=False)
        self.implicit.used(parent)

    def _owner(self, header: Header, parent: bytes) -> tuple[int, int]:
        """The owner to set. "Unchanged" below a directory whose own group is not known yet is beyond us."""
        uid, gid = owner(header)
        if gid == -1 and parent in self.implicit:
            raise Refused(
                "Unsupported", "a group that is to be inherited from a lower layer", entry=header.name
            )
        return uid, gid

    @staticmethod
    def _device(header: Header) -> int:
        major, minor = header.major, header.minor
        if not (0 <= major <= _UINT32 and 0 <= minor <= _UINT32):
            raise Refused("InvalidLayer", f"an impossible device number {major}:{minor}", entry=header.name)
        # As glibc lays it out; the kernel takes the lower 32 bits.
        return ((major & 0xFFF) << 8 | (minor & 0xFF) | (minor & 0xFFFFFF00) << 12) & _UINT32

    def _remove(self, path: bytes) -> None:
        """Take away what an entry replaces."""
        if self._bottom:
            self._remember(path)
        removed = remove_tree(path, self.implicit.removed)
        if removed is Removed.WAY:
            self._resolved = {b"": b""}
            self._rerouted = True
        if removed is not Removed.NOTHING:
            self.implicit.used(parent_of(path))

    def _remember(self, path: bytes) -> None:
        """Note the listed paths of a tree that is about to go."""
        if not os.path.lexists(path):
            return
        below = walk(path) if stat.S_ISDIR(os.lstat(path).st_mode) else ()
        for gone, _ in ((path, False), *below):
            if not self.implicit.is_unlisted(gone):
                self._ghosts.add(gone)

    def _whiteout(self, header: Header, parent: bytes, base: bytes) -> None:
        """The name alone makes a whiteout, whatever the entry's type."""
        if base == OPAQUE:
            if self._bottom:
                self._empty(parent)
            else:
                os.setxattr(parent or b".", "trusted.overlay.opaque", b"y")
            return
        victim = base[len(WHITEOUT) :]
        if victim in (b"", b".", b".."):
            raise Refused("InvalidLayer", "an invalid whiteout", entry=header.name)
        target = parent + b"/" + victim if parent else victim
        if self._bottom:
            self._remove(target)
            return
        os.mknod(target, stat.S_IFCHR, 0)
        os.chown(target, *self._owner(header, parent))
        self.implicit.used(parent)

    def _empty(self, directory: bytes) -> None:
        """An opaque marker in layer 0: what the layer did not list itself goes, once."""
        if directory in self._opaque:
            return
        self._opaque.add(directory)
        doomed: list[bytes] = []
        for path, _ in walk(directory):
            if self.implicit.is_unlisted(path):
                doomed.append(path)
        for path in doomed:
            if os.path.lexists(path):  # else it went with one above it.
                self._remove(path)
