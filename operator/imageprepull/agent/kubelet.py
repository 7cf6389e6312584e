"""The kubelet's thresholds as its configuration writes them. Agents are told: reading them takes the right `nodes/proxy`.

KubeletConfiguration v1beta1, `evictionHard` and `imageGCHighThresholdPercent`; the form is that of `--eviction-hard`.
"""

from __future__ import annotations

from imageprepull.pulling.space import Thresholds
from imageprepull.resources.free_space import Amount, parse_amount

SPACE = ("imagefs.available", "nodefs.available", "containerfs.available")
INODES = ("imagefs.inodesFree", "nodefs.inodesFree", "containerfs.inodesFree")
DEFAULT = "imagefs.available<15%,nodefs.available<10%,imagefs.inodesFree<5%,nodefs.inodesFree<5%"


def thresholds_of(eviction_hard: str, image_gc_high: int) -> Thresholds:
    """What agents keep away from. Of imagefs and nodefs the stricter counts: mostly they are one file system.

    Signals that say nothing of disks are passed over.

    Raises:
        ValueError: an expression is not `signal<quantity`, or the percentage is none.
    """
    space = inodes = Amount()
    for expression in filter(None, (part.strip() for part in eviction_hard.split(","))):
        signal, less, quantity = expression.partition("<")
        if not less:
            raise ValueError(f"{expression!r} is not signal<quantity, such as imagefs.available<15%")
        if signal in SPACE:
            space = _both(space, parse_amount(quantity))
        elif signal in INODES:
            inodes = _both(inodes, parse_amount(quantity))
    if not 0 <= image_gc_high <= 100:  # noqa: PLR2004 - percent
        raise ValueError(f"{image_gc_high} is not a percentage")
    return Thresholds(eviction=space, eviction_inodes=inodes, image_gc_high=image_gc_high)


def _both(one: Amount, other: Amount) -> Amount:
    return Amount(max(one.count, other.count), max(one.percent, other.percent))
