"""Which image records carry a pin that we set: what the agent compares with its entries."""

from __future__ import annotations

from dataclasses import dataclass

from imageprepull.pulling.labels import PINNED
from imageprepull.runtime.connection import Containerd


@dataclass(frozen=True, slots=True)
class Pin:
    """A record, by reference or image ID, and the digest of its target."""

    record: str
    digest: str


async def our_pins(containerd: Containerd) -> list[Pin]:
    """The records with a pin of ours; the runtime selects them."""
    records = await containerd.images.list([f'labels."{PINNED}"==true'])
    return [Pin(record.name, record.target.digest) for record in records]
