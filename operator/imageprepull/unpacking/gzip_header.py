"""The header of a gzip member (RFC 1952, 2.3), as far as Go's reader refuses what others take.

Go reads file name and comment into a buffer of 512 bytes, the end mark included (compress/gzip, readString).
"""

from __future__ import annotations

from imageprepull.unpacking.jobs import Refused

_FIXED = 10
_EXTRA, _NAME, _COMMENT = 4, 8, 16
_LONGEST = 512


def check_header(head: bytes) -> bool:
    """Whether `head` holds the whole header of a member; False: more bytes are needed to tell.

    Raises:
        Refused: a name or comment that containerd does not take.
    """
    if len(head) < _FIXED:
        return False
    flags, at = head[3], _FIXED
    if flags & _EXTRA:
        if len(head) < at + 2:
            return False
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if not flags & flag:
            continue
        end = head.find(b"\0", at, at + _LONGEST)
        if end >= 0:
            at = end + 1
        elif len(head) >= at + _LONGEST:
            raise Refused("InvalidLayer", "a name or comment in the gzip header of more than 511 bytes")
        else:
            return False
    return len(head) >= at
