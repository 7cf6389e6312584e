"""Ours against containerd's, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from tests.containerd.differential.layers import Chain, Outcome
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.trees import differences

_beside = ThreadPoolExecutor(1, thread_name_prefix="ours")


def unpack(chain: Chain, mine: Ours, theirs: Reference) -> tuple[list[Outcome], dict[str, list[Outcome]]]:
    """A chain by us and by both versions, at the same time: nothing here is measured."""
    ours = _beside.submit(mine.apply, chain)
    try:
        reference = theirs.apply(chain)
    finally:
        wait([ours])
    return ours.result(), reference


def compare(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[str]:
    """One line per difference. What we hand on to containerd differs by definition in nothing."""
    found: list[str] = []
    for position, (mine, wanted) in enumerate(zip(ours, theirs, strict=False)):
        where = f"layer {position}: "
        if mine.handed_on:
            break
        if mine.accepted != wanted.accepted:
            found.append(
                where + "accepted by us, containerd: " + wanted.refusal
                if mine.accepted
                else where + f"refused by us ({mine.reason}: {mine.refusal}), containerd accepts"
            )
            break
        if not mine.accepted:
            break
        if mine.diff_id != wanted.diff_id:
            found.append(where + f"diff ID {mine.diff_id}, containerd's {wanted.diff_id}")
        if mine.size != wanted.size:
            found.append(where + f"{mine.size} bytes unpacked, containerd's {wanted.size}")
        found += [where + line for line in differences(mine.tree, wanted.tree)]
        if found:
            break
    else:
        if len(ours) != len(theirs):
            found.append(f"{len(ours)} layers done, containerd's {len(theirs)}")
    return found
