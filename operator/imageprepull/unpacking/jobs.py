"""What is asked of a worker process and what it answers: plain structs that cross a socket as MessagePack.

`layer` and `inherit` do the jobs; `workers` sends them from the agent's process. Names in tars need not be UTF-8,
therefore paths are bytes.
"""

from __future__ import annotations

import msgspec

MOST_WINDOW = 32 << 20
"""Bytes of a zstd frame's window."""
MOST_REMEMBERED = 48 << 20
"""Bytes of directories, whose paths and times have to be remembered to the end: half a million of the usual length."""
MORE_DIRECTORIES = "MoreDirectories"
"""The reason of a refusal that is none of the layer's: with more memory it may be unpacked."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds for hostile layers; one that is met ends the image for good (containerd has none of them)."""

    unpacked_bytes: int = 1 << 40
    ratio: int = 1100
    """Unpacked bytes per compressed byte; deflate cannot exceed 1032. Looked at above 64 MiB unpacked."""
    entries: int = 10_000_000
    path_bytes: int = 4096
    """Longer names cannot be created anyway; the kernel's PATH_MAX."""
    remembered_bytes: int = MOST_REMEMBERED
    zstd_window: int = MOST_WINDOW
    """Frames that ask for a larger window are left to the portable path: memory stays flat."""


class ExtractJob(msgspec.Struct, frozen=True, kw_only=True):
    """Unpack one blob into an empty directory.

    `detect`: whether the compression is found by the blob's first bytes (docker and OCI `+gzip`/`+zstd` types), or
    the blob is taken as a plain tar (OCI `…tar`). `bottom`: layer 0, which has other rules than the rest.
    `size`: of the compressed blob, bytes. `dirty_bytes`: how much may wait to be written to disk before the worker
    waits for it, until it is told to hurry, 0 for as much as the kernel allows: the priority of a process does not
    reach its write-back.
    `threads`: 2 inflates beside writing, for a layer that has a second core to itself; 1 takes less time in all.
    `window`: bytes; zstd frames that ask for more are refused as WIDER_WINDOW (frames.py), to be tried with more.
    `remembered`: bytes; directories that take more are refused as MORE_DIRECTORIES, to be tried with more.
    """

    size: int
    detect: bool
    bottom: bool
    dirty_bytes: int = 0
    threads: int = 2
    window: int = MOST_WINDOW
    remembered: int = MOST_REMEMBERED
    limits: Limits = Limits()


class ImplicitDirectory(msgspec.Struct, frozen=True, array_like=True):
    """A directory that was made for an entry below it, in order of creation.

    `below`: its parent directory was one such, and not listed yet when this was made. `used`: something was created
    in it (else it only holds an opaque marker). `listed`: an entry of the tar described it later; `keeps_user` and
    `keeps_group`: but left that part of its owner as it was. `timed`: an entry set its times through a link.
    """

    path: bytes
    listed: bool
    below: bool
    used: bool
    keeps_user: bool = False
    keeps_group: bool = False
    timed: bool = False


class Extracted(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; nobody may believe the tree before `diff_id` and the blob's digest are compared."""

    diff_id: str
    unpacked_bytes: int
    entries: int
    implicit: tuple[ImplicitDirectory, ...] = ()


class InheritJob(msgspec.Struct, frozen=True, kw_only=True):
    """Give implicit directories the attributes of the lower layers; `lowers` directories are passed, top first."""

    implicit: tuple[ImplicitDirectory, ...]
    lowers: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a layer was not unpacked.

    `final`: a limit or an attack, never handed to another unpacker; else unsupported or refused as containerd
    would, and containerd's own unpacker may have the last word.
    """

    reason: str
    message: str
    entry: bytes = b""
    final: bool = False


class Refused(Exception):
    """Raised where a layer is unpacked, with the `Refusal` that crosses the socket."""

    def __init__(self, reason: str, message: str, *, entry: str | bytes = b"", final: bool = False) -> None:
        raw = entry.encode("utf-8", "surrogateescape") if isinstance(entry, str) else entry
        super().__init__(f"{message}{f' ({raw[:200]!r})' if raw else ''}")
        self.refusal = Refusal(reason=reason, message=message, entry=raw[:4096], final=final)
