"""What is to be known of an image whatever becomes of its records: labels of leases that hold nothing.

Between the runtime and what is remembered: whose an image was (provenance.py), which digest a tag was given to
(given_tags.py). Records cannot say it for long, since they go with the image, and a kubelet's pull replaces all labels of
the record that it pulls. Nobody else writes to our leases. No sweep touches these, not even one that finds no order for
the image: an order that is not seen is none that is gone. They expire by themselves.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from imageprepull.pulling.labels import MEMORY
from imageprepull.pulling.leases import drop_lease, is_aged
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.leases import Lease

_SECONDS = 30 * 24 * 3600.0
"""Half of it is long beside any registry, or agent, that is away; an image that was gone for so long is nobody's."""


async def keep(containerd: Containerd, purpose: str, labels: Mapping[str, str]) -> str:
    """Remember `labels` for 15 to 30 days from now; the ID of the lease that does.

    Nothing is written where a lease that is known has that time left.
    """
    known = await recall(containerd, labels)
    kept = next((one.id for one in known if not is_fading(one)), "")
    if not kept:
        # A lease cannot be prolonged. First, and under a new ID each time: who dies in between leaves one note too many,
        # not none.
        kept = f"imageprepull-{purpose}-{secrets.token_hex(16)}"
        await containerd.leases.create(kept, {MEMORY: "true", **labels}, _SECONDS)
    for one in known:
        if one.id != kept:
            await drop_lease(containerd, one.id)
    return kept


async def recall(containerd: Containerd, labels: Mapping[str, str]) -> list[Lease]:
    """What is remembered that has these labels, and perhaps others."""
    wanted = {MEMORY: "true", **labels}
    return await containerd.leases.list(
        [",".join(f'labels."{key}"=="{text}"' for key, text in wanted.items())]
    )


def is_fading(lease: Lease) -> bool:
    """Whether what still holds true should be kept once more."""
    return is_aged(lease, _SECONDS, time.time())
