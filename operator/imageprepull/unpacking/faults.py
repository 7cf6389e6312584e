"""Which errors of the file system are the node's, and which say that a layer asks for the impossible."""

from __future__ import annotations

import errno

from imageprepull.unpacking.jobs import Refused

_OF_THE_NODE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.ENOMEM,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.ESTALE,
    }
)


def as_fault(error: OSError | ValueError, entry: bytes) -> Exception:
    """The error itself where the node is to blame, else a refusal of the layer with the entry named."""
    if isinstance(error, ValueError):  # a NUL where the kernel takes none.
        return Refused("InvalidLayer", f"an entry cannot be made: {error}", entry=entry)
    if error.errno in _OF_THE_NODE:
        return error
    return Refused("InvalidLayer", f"an entry cannot be made: {error.strerror}", entry=entry)
