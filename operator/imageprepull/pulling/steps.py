"""The steps of a pull by name, told at debug level as they are done: what a log of a pull that died ends with.

Their order is the one that recovery relies on. tests/faults kills at each of them, and counts by these names.
"""

from __future__ import annotations

from enum import StrEnum

import structlog

log = structlog.get_logger(__name__)


class Step(StrEnum):
    """Each is done when it is told; the comments say what may be lost after it."""

    LEASED = "leased"
    DOCUMENTED = "documented"
    """Config, manifest and indexes are in the content store, with their labels; told again before the records."""
    ASKED = "asked"
    """It is known which layers exist."""
    FETCHED = "fetched"
    """A range is in the spool and in its range map: it is never fetched again."""
    SPOOLED = "spooled"
    """A blob is complete and has its digest."""
    STAGED = "staged"
    """The snapshot that layers are unpacked in is there."""
    UNPACKED = "unpacked"
    """A layer's tree is complete and both its digests match."""
    PREPARED = "prepared"
    """A layer's own snapshot is there, on its parent, and empty."""
    INHERITED = "inherited"
    EXCHANGED = "exchanged"
    VOUCHED = "vouched"
    """The staging snapshot was still there after the exchange."""
    APPLIED = "applied"
    """The runtime has unpacked a layer, on the portable path."""
    COMMITTED = "committed"
    UNSTAGED = "unstaged"
    SYNCED = "synced"
    BELIEVED = "believed"
    """The label of layers that a power cut would take is gone."""
    RECORDED = "recorded"
    """One of the image's records is there."""
    VISIBLE = "visible"
    RELEASED = "released"
    """The lease is gone."""
    KEEPING = "keeping"
    """The lease for the compressed layers is there."""
    PLACED = "placed"
    """A blob's file has a name in the content store, which has not recorded it."""
    INGESTED = "ingested"
    """The content store has a layer's blob."""
    KEPT = "kept"
    """All blobs are there, and the lease for them is gone."""


def reached(step: Step, subject: str = "") -> None:
    """Tell that `step` is done for a blob, a chain, a lease or a record."""
    log.debug("step", step=step.value, subject=subject)
