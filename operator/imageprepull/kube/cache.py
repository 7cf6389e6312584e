"""What the informer knows, and what a list or an event changes in it. No I/O, no time: the decisions of informer.py.

kopf's index keeps ghosts of objects that vanished in a watch gap and both lives of a re-created one. Here objects
are known by name and uid, and a list is compared with what was known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Document = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of cluster-scoped objects is empty."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one object. `object` is its newest known state, `old` the one before (None when added).

    `witnessed` is True only when the watch itself delivered the change. What a list revealed happened unseen, and
    a deletion of that kind is a weaker ground for destroying anything.
    """

    type: Literal["added", "modified", "deleted"]
    object: Document
    old: Document | None
    witnessed: bool


def key_of(document: Document) -> Key:
    """Where an object stands in the cache."""
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def uid_of(document: Document) -> str:
    """Which life of that name it is."""
    return str(document["metadata"].get("uid", ""))


def version_of(document: Document) -> str:
    """Its resourceVersion."""
    return str(document["metadata"].get("resourceVersion", ""))


def went_back(known: Document, found: Document) -> bool:
    """Whether `found`, read after `known` was, proves that the API server is in an older state than it was in."""
    if uid_of(known) != uid_of(found):
        return False
    return any(after < before for before, after in zip(_counters(known), _counters(found), strict=True))


def _counters(document: Document) -> tuple[int, int]:
    """What only grows while an object lives."""
    return int(version_of(document) or 0), int(document["metadata"].get("generation", 0))


def _content(document: Document) -> Document:
    """What is there. After a restored backup the same version may be another one's; a list leaves the kind out of its items."""
    return {name: part for name, part in document.items() if name not in ("apiVersion", "kind")}


def replace_all(cache: dict[Key, Document], found: Iterable[Document]) -> list[Change]:
    """Make `cache` equal to a list, and say what that changed: deletions first, then the rest in list order."""
    listed = {key_of(document): document for document in found}
    changes: list[Change] = []
    for key, old in list(cache.items()):
        new = listed.get(key)
        if new is None or uid_of(new) != uid_of(old):
            del cache[key]
            changes.append(Change("deleted", old, old, witnessed=False))
    for new in listed.values():
        changes += put(cache, new, witnessed=False)
    return changes


def remove(cache: dict[Key, Document], key: Key) -> list[Change]:
    """Take an object out of `cache` that was found to be missing."""
    old = cache.pop(key, None)
    return [] if old is None else [Change("deleted", old, old, witnessed=False)]


def take_event(cache: dict[Key, Document], kind: str, document: Document) -> list[Change]:
    """Bring one watch event into `cache`. A re-created object is a deletion and an addition."""
    key = key_of(document)
    if kind == "DELETED":
        old = cache.get(key)
        if old is None or uid_of(old) != uid_of(document):
            return []
        del cache[key]
        return [Change("deleted", document, old, witnessed=True)]
    return put(cache, document, witnessed=True)


def put(cache: dict[Key, Document], new: Document, *, witnessed: bool) -> list[Change]:
    """Bring the state of one object into `cache`, whatever was known of it."""
    key = key_of(new)
    old = cache.get(key)
    if old is not None and uid_of(old) == uid_of(new):
        if version_of(old) == version_of(new) and _content(old) == _content(new):
            return []
        cache[key] = new
        return [Change("modified", new, old, witnessed)]
    cache[key] = new
    added = Change("added", new, None, witnessed)
    if old is None:
        return [added]
    # Another life under the same name whose deletion nobody told us.
    return [Change("deleted", old, old, witnessed=False), added]
