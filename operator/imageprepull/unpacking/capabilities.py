"""The capabilities that unpacking needs, and the dropping of all others."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable

from imageprepull.unpacking import kernel

CAP_SYS_CHROOT = 18

NEEDED = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_SYS_ADMIN": 21,  # trusted.overlay.* attributes
    "CAP_MKNOD": 27,
    "CAP_SETFCAP": 31,
}
"""What a worker keeps."""

_VERSION_3 = 0x20080522


def bits(capabilities: Iterable[int]) -> int:
    """The mask of a set."""
    return sum(1 << capability for capability in capabilities)


def permitted() -> int:
    """The mask that this process has, or may give itself."""
    sets = (ctypes.c_uint32 * 6)()
    kernel.capget((ctypes.c_uint32 * 2)(_VERSION_3, 0), sets)
    return int(sets[1]) | int(sets[4]) << 32


def missing() -> list[str]:
    """Names of what a worker needs and this process could not give it."""
    mask = permitted()
    names = NEEDED | {"CAP_SYS_CHROOT": CAP_SYS_CHROOT}
    return sorted(name for name, capability in names.items() if not mask >> capability & 1)


def limit_bounding(kept: Iterable[int]) -> None:
    """Let no later execve, of this process or a child, gain anything but `kept`. Needs CAP_SETPCAP."""
    keep = set(kept)
    for capability in range(64):
        try:
            has = kernel.prctl(kernel.PR_CAPBSET_READ, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel's last one is behind us
                return
            raise
        if has and capability not in keep:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)


def limit_to(kept: Iterable[int]) -> None:
    """Keep these effective and permitted, none inheritable or ambient. There is no way back."""
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    mask = bits(kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    # Twice (effective, permitted, inheritable): capabilities 0-31 and 32-63.
    kernel.capset((ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
