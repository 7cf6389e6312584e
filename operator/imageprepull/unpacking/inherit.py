"""Directories that a layer does not list get the attributes that containerd would have copied from the lower layers.

Runs at commit, before the exchange, when the lower layers are known (`WithParents` of containerd's apply does it
while unpacking). Rules: containerd `pkg/archive/tar.go` mkparent, `tar_unix.go` copyDirInfo and copyUpXAttrs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from imageprepull.unpacking.faults import as_fault
from imageprepull.unpacking.jobs import ImplicitDirectory, InheritJob, Refused
from imageprepull.unpacking.paths import parent_of, root_path

_NO_XATTRS = frozenset({errno.ENOTSUP, errno.ENODATA})
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def inherit(job: InheritJob, root: int, lowers: Sequence[int]) -> None:
    """Mend the tree in `root`. `lowers`: descriptors of the lower layers' directories, top first.

    Raises:
        Refused: as containerd would refuse the layer, or what only unpacking onto the parent can get right.
        OSError: the disk.
    """
    os.fchdir(root)
    setgid: dict[bytes, int] = {}
    for directory in job.implicit:
        try:
            _inherit(directory, lowers, setgid)
        except OSError as error:
            raise as_fault(error, directory.path) from error


def _inherit(directory: ImplicitDirectory, lowers: Sequence[int], setgid: dict[bytes, int]) -> None:
    """Mend one directory. `setgid`: the groups that directories mended before hand on."""
    lower = _find(directory.path, lowers)
    if lower is None:
        # Made in a directory that hands its group on; a later entry has set its own.
        group = setgid.get(parent_of(directory.path)) if directory.below else None
        if group is not None and (directory.keeps_group or not directory.listed):
            os.chown(directory.path, -1, group, follow_symlinks=False)
        return
    descriptor, found = lower
    try:
        _copy(directory, descriptor, found)
    finally:
        os.close(descriptor)
    if found.st_mode & stat.S_ISGID:
        setgid[directory.path] = found.st_gid


def _find(path: bytes, lowers: Sequence[int]) -> tuple[int, os.stat_result] | None:
    """The directory in the first lower layer that has anything at `path`; None when it has something else."""
    for lower in lowers:
        resolved = root_path(b"/" + path, lower) or b"."
        try:
            found = os.lstat(resolved, dir_fd=lower)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
        return os.open(resolved, flags, dir_fd=lower), found
    return None


def _copy(directory: ImplicitDirectory, lower: int, found: os.stat_result) -> None:
    path = directory.path
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    if directory.listed:
        user = found.st_uid if directory.keeps_user else -1
        group = found.st_gid if directory.keeps_group else -1
        os.chown(path, user, group, follow_symlinks=False)
    else:
        mode = stat.S_IMODE(found.st_mode)
        os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
        os.chmod(path, mode)
    names = _xattr_names(lower)
    if _DEFAULT in names:
        raise Refused("Unsupported", "a default access list that children would have inherited", entry=path)
    for name in names:
        if not name.startswith("trusted."):
            _copy_xattr(path, lower, name)
    if directory.listed:
        if _ACCESS in names:
            # The entry's own mode came after the list, and rewrote its mask.
            os.chmod(path, mode)
        return
    if directory.timed:
        return
    now = os.lstat(path)
    mtime = now.st_mtime_ns if directory.used else found.st_mtime_ns
    os.utime(path, ns=(found.st_atime_ns, mtime), follow_symlinks=False)


def _xattr_names(lower: int) -> list[str]:
    try:
        return os.listxattr(lower)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise


def _copy_xattr(path: bytes, lower: int, name: str) -> None:
    try:
        value = os.getxattr(lower, name)
        os.setxattr(path, name, value, os.XATTR_CREATE, follow_symlinks=False)
    except OSError as error:
        # One that the entry listed itself stays.
        if error.errno not in (*_NO_XATTRS, errno.EEXIST):
            raise
