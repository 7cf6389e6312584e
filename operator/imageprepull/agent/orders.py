"""What orders the removal of an image, and whether the order still stands. Pure, but for `order_in`, which asks.

Between the NodePrepull and removal.py, which carries orders out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from imageprepull.agent.node import NodeError
from imageprepull.agent.plan import key_of
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodePrepull, wanted_digests

NOT_CONFIRMED = "OrderNotConfirmed"

Confirm = Callable[[DesiredImage], Awaitable[Sequence[DesiredImage]]]
"""The newest entries of this node when they still order the removal of this one; raises `NodeError` otherwise."""


@dataclass(frozen=True, slots=True)
class Order:
    """An entry of the object `uid` that orders a removal, and when the agent first saw it so: monotonic seconds."""

    uid: str
    entry: DesiredImage
    seen: float


def orders(entries: Sequence[DesiredImage], image: DesiredImage) -> bool:
    """Whether these entries, one of a NodePrepull, ask for the removal of this very one."""
    return any(key_of(entry) == key_of(image) and entry.to_be_deleted for entry in entries)


def staying_digests(
    image: DesiredImage, confirmed: Sequence[DesiredImage], newest: Sequence[DesiredImage]
) -> frozenset[str]:
    """What stays while an image is being removed: what the confirmed entries want, or the newest ones by now.

    The image's own digest as soon as the newest do not order its removal any more.
    """
    wanted = wanted_digests(confirmed) | wanted_digests(newest)
    return wanted if orders(newest, image) else wanted | {image.digest}


def pinned_elsewhere(image: DesiredImage, entries: Sequence[DesiredImage]) -> list[str]:
    """Other references to the same digest whose pins stay."""
    return [
        entry.reference
        for entry in entries
        if entry.digest == image.digest
        and entry.reference != image.reference
        and entry.pin
        and entry.state is not Desired.ABSENT
    ]


def order_in(
    api: ApiClient,
    node_name: str,
    seen: Callable[[DesiredImage], Order | None],
    alive: Callable[[float], Awaitable[None]],
) -> Confirm:
    """Ask the API server itself: a watch that hangs, or outlived a restored backup, may hold an old order.

    `seen`: the order for an image as the agent sees it. `alive` raises unless an operator has lived since that moment
    that could have taken it back.
    """

    async def confirm(image: DesiredImage) -> Sequence[DesiredImage]:
        while True:
            order = seen(image)
            if order is None:
                raise NodeError(NOT_CONFIRMED, "the NodePrepull does not order it any more")
            # In this order: while the operator was watched it had the time to take back what is old.
            await alive(order.seen)
            entries = await _read_again(api, node_name, order)
            if seen(image) == order:
                return entries

    return confirm


async def _read_again(api: ApiClient, node_name: str, order: Order) -> Sequence[DesiredImage]:
    try:
        found = decode(NodePrepull, await api.get(NODEPREPULLS, node_name))
    except ApiError as error:
        raise NodeError(
            NOT_CONFIRMED,
            f"the order to remove it cannot be read again: {error}",
            retry_after=error.retry_after,
        ) from error
    except msgspec.ValidationError as error:
        raise NodeError(NOT_CONFIRMED, f"the order to remove it cannot be read again: {error}") from error
    if found.metadata.uid != order.uid:
        raise NodeError(NOT_CONFIRMED, "the NodePrepull was deleted since, or made anew")
    if not orders(found.spec.images, order.entry):
        raise NodeError(NOT_CONFIRMED, "the newest NodePrepull does not order it any more")
    if order.entry not in found.spec.images:
        raise NodeError(NOT_CONFIRMED, "the order in the newest NodePrepull is another one")
    return found.spec.images
