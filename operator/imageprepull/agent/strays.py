"""Pins of ours that no entry of the spec names, for the status. Pure: the reconciler lists the pins, the operator decides.

They are left when an entry vanishes without an Absent: a node that registers anew on the same disk, a NodePrepull and
an object that are deleted while no operator runs, entries beyond the schema's bound. Only what an entry made of the
line could take away is named: an Absent of this reference and digest.

The operator may leave some where they are for as long as an object might mean them. Those behind them have their turn.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Collection, Iterable, Sequence

from imageprepull.agent.plan import Key
from imageprepull.oci.digests import InvalidDigest, check_digest
from imageprepull.oci.reference import InvalidReference, Reference
from imageprepull.pulling.pins import Pin
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import StrayPin

TURN = 8
"""How many a status has room for whatever else it holds, and by how many a turn goes on."""


def stray_pins(
    pins: Iterable[Pin], named: Collection[Key], shown: Sequence[StrayPin] = (), *, turn: bool = False
) -> list[StrayPin]:
    """The pins beside `named`: the entries, whatever they ask for, and what is still pulled for one that vanished.

    The record of a tag stands for its digest's in the same repository, and either for the ID's. By reference, and as
    many as the status may hold: from the first that was `shown` last on, at a `turn` from the first behind `TURN` of
    them, and round. So each of n that stay is among the first `TURN` within n / `TURN` turns, and between two turns
    nothing moves by itself.
    """
    known = _records(named)
    digests = {digest for _, digest in named}
    tags: dict[Key, str] = {}
    by_digest: dict[Key, str] = {}
    ids: dict[str, str] = {}
    for pin in pins:
        if _is_id(pin.record):
            if pin.digest not in digests:
                ids[pin.digest] = pin.record
            continue
        reference = _reference(pin.record)
        if reference is None or pin.record in known:
            continue
        if reference.digest is None:
            tags[pin.record, pin.digest] = reference.name
        elif reference.digest == pin.digest:
            by_digest[pin.record, pin.digest] = reference.name
    repositories = {(name, digest) for (_, digest), name in tags.items()}
    found = set(tags) | {key for key, name in by_digest.items() if (name, key[1]) not in repositories}
    named_so = {digest for _, digest in found}
    found |= {(record, digest) for digest, record in ids.items() if digest not in named_so}
    lines = [
        StrayPin(reference=record, digest=digest)
        for record, digest in sorted(found)
        if len(record) <= bounds.REFERENCE and _is_id(digest)
    ]
    if len(lines) <= TURN or not shown:
        return lines[: bounds.STRAY_PINS]
    first = shown[TURN] if turn and len(shown) > TURN else shown[0]
    begin = bisect.bisect_left(lines, _order(first), key=_order)
    return [*lines[begin:], *lines[:begin]][: bounds.STRAY_PINS]


def _order(line: StrayPin) -> Key:
    return line.reference, line.digest


def _records(named: Collection[Key]) -> set[str]:
    """The names of all records that entries speak of. A tag is its entry's affair, whatever it means by now."""
    found: set[str] = set()
    for text, digest in named:
        with contextlib.suppress(InvalidReference):
            reference = Reference.parse(text)
            found |= {reference.canonical, reference.digest_record(digest)}
    return found


def _reference(record: str) -> Reference | None:
    """The reference whose record it is; None for a name that no entry of ours would lead to."""
    try:
        reference = Reference.parse(record)
    except InvalidReference:
        return None
    return reference if reference.canonical == record else None


def _is_id(text: str) -> bool:
    try:
        return bool(check_digest(text))
    except InvalidDigest:
        return False
