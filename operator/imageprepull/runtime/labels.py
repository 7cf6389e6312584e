"""Labels of containerd objects: names that the runtime gives a meaning to, and how ours join those of others."""

from __future__ import annotations

from collections.abc import Mapping

GC_EXPIRE = "containerd.io/gc.expire"
SNAPSHOT_REF = "containerd.io/snapshot.ref"
SOURCE_PREFIX = "containerd.io/distribution.source."
# containerd pkg/labels: key and value together.
LABEL_LIMIT = 4096


def merged_sources(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """`wanted`, with its distribution sources added to those that are there.

    Such a label lists the repositories of one registry that hold the blob, sorted and joined by commas. One that
    would become too long stays as it is (containerd core/remotes/docker, appendDistributionSourceLabel).
    """
    merged = dict(wanted)
    for key, value in wanted.items():
        if not key.startswith(SOURCE_PREFIX):
            continue
        sources = sorted({*value.split(","), *present.get(key, "").split(",")} - {""})
        joined = ",".join(sources)
        merged[key] = joined if len(key) + len(joined) <= LABEL_LIMIT else present.get(key, value)
    return merged
