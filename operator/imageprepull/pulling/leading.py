"""Which image records lead to a config, and so to a chain: by the labels that the runtime's collector follows."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord


async def records_of(containerd: Containerd, configs: AbstractSet[str]) -> list[ImageRecord]:
    """Records whose target leads to one of the configs."""
    found = await records_by_config(containerd, configs)
    return list({record.name: record for records in found.values() for record in records}.values())


async def records_by_config(
    containerd: Containerd, configs: AbstractSet[str]
) -> dict[str, list[ImageRecord]]:
    """For each config the records whose target leads to it; that of an index may lead to several."""
    if not configs:
        return {}
    leads = {config: {config} for config in configs}
    """By digest, the configs that it leads to."""
    for blob in await containerd.content.list(['labels."containerd.io/gc.ref.content.config"']):
        if (config := blob.labels["containerd.io/gc.ref.content.config"]) in configs:
            leads.setdefault(blob.digest, set()).add(config)
    manifests = dict(leads)
    for record in await containerd.images.list():
        if record.target.is_index and record.target.digest not in leads:
            found = await containerd.content.info(record.target.digest)
            below = found.labels.values() if found is not None else ()
            leads[record.target.digest] = set().union(*(manifests.get(digest, ()) for digest in below))
    records: dict[str, list[ImageRecord]] = {config: [] for config in configs}
    for record in await containerd.images.list():
        for config in leads.get(record.target.digest, ()):
            records[config].append(record)
    return records
