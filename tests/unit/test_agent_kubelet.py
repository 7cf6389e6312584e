"""The kubelet's thresholds as people copy them from its configuration."""

from __future__ import annotations

import pytest

from imageprepull.agent.kubelet import DEFAULT, thresholds_of
from imageprepull.pulling.space import Thresholds
from imageprepull.resources.free_space import Amount


def test_the_default_is_the_kubelets() -> None:
    assert thresholds_of(DEFAULT, 85) == Thresholds()


@pytest.mark.parametrize(
    ("text", "space", "inodes"),
    [
        ("", Amount(), Amount()),
        ("memory.available<100Mi,pid.available<5%", Amount(), Amount()),
        ("imagefs.available<10%, nodefs.available<20%", Amount(percent=20), Amount()),
        ("imagefs.available<10Gi,nodefs.available<5%", Amount(10 << 30, 5), Amount()),
        ("nodefs.inodesFree<7%", Amount(), Amount(percent=7)),
    ],
)
def test_of_imagefs_and_nodefs_the_stricter_counts(text: str, space: Amount, inodes: Amount) -> None:
    found = thresholds_of(text, 80)
    assert (found.eviction, found.eviction_inodes, found.min_free) == (space, inodes, Amount(percent=25))


@pytest.mark.parametrize(
    ("text", "high"), [("imagefs.available", 85), ("imagefs.available<a lot", 85), ("", 101), ("", -1)]
)
def test_what_cannot_be_read_is_refused(text: str, high: int) -> None:
    with pytest.raises(ValueError, match=r"signal|quantity|percentage"):
        thresholds_of(text, high)
