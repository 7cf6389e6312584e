"""Owner, mode, extended attributes and times, set in containerd's order: owner first, since it clears the rest."""

from __future__ import annotations

import errno
import os
import stat

from imageprepull.unpacking.headers import DIRECTORY, REGULAR, Header
from imageprepull.unpacking.jobs import Refused
from imageprepull.unpacking.numbers import bound_time, is_before
from imageprepull.unpacking.pax import xattrs

_UNCHANGED = (1 << 32) - 1
ACL_DEFAULT = b"system.posix_acl_default"


def owner(header: Header) -> tuple[int, int]:
    """User and group as the kernel takes them; -1 leaves what is there."""
    uid, gid = header.uid & _UNCHANGED, header.gid & _UNCHANGED
    return -1 if uid == _UNCHANGED else uid, -1 if gid == _UNCHANGED else gid


def times(header: Header) -> tuple[int, int]:
    """Access and modification time in ns; the access time is never the older one."""
    access = header.access_time
    mtime = header.mtime
    if access is None or is_before(access, mtime):
        access = mtime
    return bound_time(access), bound_time(mtime)


def set_all(path: bytes, header: Header) -> None:
    """Everything, on whatever the entry made at `path`; links are not followed. Raises Refused, OSError."""
    uid, gid = owner(header)
    os.chown(path, uid, gid, follow_symlinks=False)
    if header.pax:
        set_xattrs(path, header)
    if not stat.S_ISLNK(os.lstat(path).st_mode):
        os.chmod(path, header.mode & 0o7777)
    os.utime(path, ns=times(header), follow_symlinks=False)


def set_xattrs(path: bytes | int, header: Header) -> list[bytes]:
    """Set the extended attributes of an entry; the names of those that were set. Raises Refused."""
    done = []
    for name, value in xattrs(header.pax or {}):
        if name.startswith(b"trusted."):
            continue
        try:
            # A descriptor only ever stands for a regular file; following means nothing then.
            os.setxattr(path, name, value, follow_symlinks=isinstance(path, int))
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                continue
            # Only files and directories may have user attributes.
            special = header.type not in (REGULAR, DIRECTORY)
            if error.errno == errno.EPERM and name.startswith(b"user.") and special:
                continue
            raise Refused(
                "InvalidLayer",
                f"the extended attribute {name[:100]!r} cannot be set: {error.strerror}",
                entry=header.name,
            ) from error
        done.append(name)
    return done
