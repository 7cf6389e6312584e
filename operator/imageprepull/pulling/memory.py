"""What is to be known of an image whatever becomes of its records: labels of leases that hold nothing.

Between the runtime and what is remembered: whose an image was (provenance.py), which digest a tag was given to
(given_tags.py). Records cannot say it for long, since they go with the image, and a kubelet's pull replaces all labels of
the record that it pulls. Nobody else writes to our leases. No sweep touches these, not even one that finds no order for
the image: an order that is not seen is none that is gone. They expire by themselves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from imageprepull.pulling.labels import MEMORY
from imageprepull.pulling.leases import is_aged
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import AlreadyExists
from imageprepull.runtime.leases import Lease

_SECONDS = 30 * 24 * 3600.0
"""Long beside any registry, or agent, that is away; an image that was gone for so long is nobody's."""


async def keep(containerd: Containerd, lease_id: str, labels: Mapping[str, str]) -> None:
    """Remember `labels` for 30 days. What is known under that ID already stays what it is."""
    with contextlib.suppress(AlreadyExists):
        await containerd.leases.create(lease_id, {MEMORY: "true", **labels}, _SECONDS)


def is_fading(lease: Lease) -> bool:
    """Whether what still holds true should be kept once more, under another ID: a lease cannot be prolonged."""
    return is_aged(lease, _SECONDS, time.time())
