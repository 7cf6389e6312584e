"""Names of a tar as containerd reads them: cleaned lexically, symbolic links followed inside the root only.

`root_path` answers as `RootPath` of containerd's continuity library does, half lexical as it is: a link in the root
is followed component by component, one below it is joined and cleaned first. openat2 and chroot answer otherwise.
Paths are bytes and relative to the working directory, or to `dir_fd`; the root itself is b"".
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from imageprepull.unpacking.jobs import Refused

MAX_LINKS = 255


def clean(name: bytes) -> bytes:
    """Go's filepath.Clean: `.` and `..` resolved by their spelling; "" becomes "."."""
    cleaned = posixpath.normpath(name)
    # POSIX lets two leading slashes mean something; Go does not.
    return cleaned[1:] if cleaned.startswith(b"//") else cleaned


def join(head: bytes, tail: bytes) -> bytes:
    """Go's filepath.Join of two elements."""
    if not head:
        return clean(tail) if tail else b""
    return clean(head + b"/" + tail) if tail else clean(head)


def parent_of(path: bytes) -> bytes:
    """The directory of a relative path; b"" is the root."""
    return path.rpartition(b"/")[0]


def root_path(path: bytes, dir_fd: int | None = None) -> bytes:
    """Where `path` leads when every link stays inside the root; what does not exist is no link.

    Raises:
        Refused: more than 255 links.
        OSError: a component cannot be looked at (ENOTDIR below a file).
    """
    if not path:
        return b""
    links = 0
    while True:
        before = links
        path, links = _walk(path, links, dir_fd)
        if links == before:
            absolute = join(b"/", path)
            if absolute == path:
                return absolute[1:]
            path = absolute


def _walk(path: bytes, links: int, dir_fd: int | None) -> tuple[bytes, int]:
    """One pass over all components; the links met and followed are counted on."""
    walked: bytes | None = b"/" if path.startswith(b"/") else None
    for component in path.split(b"/"):
        if not component:
            continue
        if walked is None:
            walked, is_link = _follow(component, links, dir_fd)
        else:
            target, is_link = _follow(join(walked, component), links, dir_fd)
            walked = join(walked, target) if is_link and not target.startswith(b"/") else target
        links += is_link
    return walked if walked is not None else b"/", links


def _follow(path: bytes, links: int, dir_fd: int | None) -> tuple[bytes, bool]:
    """The target of a link and True, or the path, made absolute, and False."""
    if links > MAX_LINKS:
        raise Refused("InvalidLayer", "too many symbolic links", entry=path)
    path = join(b"/", path)
    if path == b"/":
        return path, False
    try:
        found = os.lstat(path[1:], dir_fd=dir_fd)
        if not stat.S_ISLNK(found.st_mode):
            return path, False
        return os.readlink(path[1:], dir_fd=dir_fd), True
    except OSError as error:
        if error.errno == errno.ENOENT:
            return path, False
        raise
