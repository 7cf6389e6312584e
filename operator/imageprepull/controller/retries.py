"""`kubectl image-prepull retry`: from an annotation on an ImagePrepull to nonces in NodePrepulls. Pure.

The annotation `imageprepull.io/retry` is `NONCE [node=NODE] [REFERENCE]`: what failed of the object's images, on that
node and of that reference if named, is tried again at once. It belongs to whoever wrote it and is never changed here;
`status.retry` answers it (retry_answer.py), and once that names the nonce with nobody waiting, the order is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from imageprepull.controller.assign import Admission
from imageprepull.controller.orders import InvalidOrder, word_and_rest
from imageprepull.resources.imageprepull import ImagePrepull, RetryStatus
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, NodeImageStatus
from imageprepull.resources.reasons import DISK_FULL, INSUFFICIENT_DISK

ANNOTATION = "imageprepull.io/retry"
INVALID = "InvalidRetry"
LONGEST_NONCE = 20
ORDERS_AT_ONCE = 3
"""Orders that an entry can carry: so many nonces fit into the schema's field. More objects than that which name one
image, fail and are all retried at the same moment wait for each other."""
_SEPARATOR = ","

EntryKey = tuple[str, str]
"""(reference, digest) of an entry."""


@dataclass(frozen=True, slots=True)
class RetryOrder:
    """What to try again; `node` and `reference` "" mean every one of the object's."""

    nonce: str
    node: str = ""
    reference: str = ""

    def __str__(self) -> str:
        """The annotation's value."""
        node = f"node={self.node}" if self.node else ""
        return " ".join(word for word in (self.nonce, node, self.reference) if word)

    def concerns(self, node: str, reference: str) -> bool:
        """Whether an image on a node is meant."""
        return self.node in ("", node) and self.reference in ("", reference)

    def entries(self, node: str, admissions: Iterable[Admission]) -> frozenset[EntryKey]:
        """The entries of a node that are meant; what has no digest yet has no entry."""
        return frozenset(
            (admission.image.record, admission.digest)
            for admission in admissions
            if admission.digest and self.concerns(node, admission.image.record)
        )


def read_order(annotations: Mapping[str, str]) -> RetryOrder | None:
    """What the annotations ask for.

    Raises:
        InvalidOrder: nothing that can be done.
    """
    found = word_and_rest(annotations, ANNOTATION, LONGEST_NONCE)
    if found is None:
        return None
    nonce, rest = found
    words = rest.split()
    node = words.pop(0).removeprefix("node=") if words and words[0].startswith("node=") else ""
    if len(words) > 1:
        raise InvalidOrder(
            f"{ANNOTATION} is NONCE [node=NODE] [IMAGE], not {annotations[ANNOTATION][:200]!r}"
        )
    return RetryOrder(nonce, node, words[0] if words else "")


def written(prepull: ImagePrepull) -> str | None:
    """The annotation's value."""
    return prepull.metadata.annotations.get(ANNOTATION)


def standing(prepull: ImagePrepull) -> RetryOrder | None:
    """The order of an object that is to be carried out: there, readable, and not answered yet."""
    try:
        order = read_order(prepull.metadata.annotations)
    except InvalidOrder:
        return None
    return None if order is None or is_over(prepull.status.retry, order) else order


def is_over(answer: RetryStatus | None, order: RetryOrder) -> bool:
    """Whether an answer is the last word on an order."""
    return answer is not None and answer.nonce == order.nonce and not answer.waiting


def handed_on(
    entries: Sequence[DesiredImage],
    current: Sequence[DesiredImage],
    reported: Sequence[NodeImageStatus],
    orders: Mapping[str, Collection[EntryKey]],
) -> list[DesiredImage]:
    """The entries of a node with the nonces of the orders (and the entries each concerns) in those that have failed.

    An entry gets a nonce once and keeps it: its disappearance would be news as well. So an order never turns into a
    loop, whatever fails anew while it stands, and however many orders name one image.
    """
    before = {(entry.reference, entry.digest): entry.retry.nonce for entry in current}
    troubled = {(one.reference, one.digest) for one in reported if has_failed(one)}
    return [
        _with_nonce(entry, before.get(key, ""), sorted(n for n, keys in orders.items() if key in keys))
        if entry.state is Desired.PRESENT and (key := (entry.reference, entry.digest)) in troubled
        else _named(entry, before.get((entry.reference, entry.digest), ""))
        for entry in entries
    ]


def _with_nonce(entry: DesiredImage, before: str, asking: Sequence[str]) -> DesiredImage:
    carried = nonces(before)
    new = [nonce for nonce in asking if nonce not in carried]
    # Those of orders that are over make room.
    kept = [nonce for nonce in carried if nonce in asking]
    new = new[: ORDERS_AT_ONCE - len(kept)]
    return _named(entry, _SEPARATOR.join([*kept, *new]) if new else before)


def _named(entry: DesiredImage, nonce: str) -> DesiredImage:
    if entry.retry.nonce == nonce:
        return entry
    return msgspec.structs.replace(entry, retry=msgspec.structs.replace(entry.retry, nonce=nonce))


def nonces(text: str) -> list[str]:
    """The orders that an entry carries."""
    return text.split(_SEPARATOR) if text else []


def has_failed(image: NodeImageStatus) -> bool:
    """Whether an image is one that waits after a failure: for good, for its next attempt, or for room.

    Room is looked for anew then, so that the answer has the figures of now. Not under disk pressure: nothing is tried.
    """
    backing_off = image.attempts > 0 or image.next_attempt is not None
    no_room = image.reason in (INSUFFICIENT_DISK, DISK_FULL)
    return image.state == ImageState.FAILED or (
        image.state == ImageState.WAITING and (backing_off or no_room)
    )
