"""Of which entries of the spec the pins on the node are. Pure; the counterpart of strays.py, which has the other pins.

Asked where no judgement of an image helps: one that cannot be judged may carry a pin as well as any other.
"""

from __future__ import annotations

from collections.abc import Iterable

from imageprepull.agent.plan import Key
from imageprepull.oci.reference import InvalidReference, Reference
from imageprepull.pulling.pins import Pin
from imageprepull.pulling.records import is_record_of


def pinned_entries(pins: Iterable[Pin], entries: Iterable[Key]) -> set[Key]:
    """The entries whose unpinning would take one of these pins away; an ID's is of all entries with its digest."""
    by_digest: dict[str, list[Pin]] = {}
    for pin in pins:
        by_digest.setdefault(pin.digest, []).append(pin)
    found = set()
    for text, digest in entries:
        if digest not in by_digest:
            continue
        try:
            reference = Reference.parse(text)
        except InvalidReference:
            continue  # it leads to no record, so none of them is its.
        if any(is_record_of(pin.record, pin.digest, reference, digest) for pin in by_digest[digest]):
            found.add((text, digest))
    return found
