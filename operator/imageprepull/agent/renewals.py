"""What looks at the operator's Lease add up to: since when an order would have been taken back. Pure.

That its leader lives is not enough: one that may not read the objects any more renews its Lease as ever.

Below operator_lease.py, which looks. No clock of another machine is compared; what counts are changes that we see, as
client-go's leader election reads leases. Times are monotonic seconds of the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from imageprepull.resources.vouching import vouches

RENEWALS = 2
"""That vouch, within one term. For the second the leader has looked at everything anew since the first, and has had
the time to take an order back."""
USUAL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Term:
    """What a Lease says: who leads since when, when it was renewed (as its holder's clock has it), for how long.

    `vouches`: with that renewal the leader says that it sees every object, and has taken back what is not ordered.
    """

    holder: str = ""
    acquired: str = ""
    renewed: str = ""
    seconds: float = USUAL_SECONDS
    vouches: bool = False


def term_of(lease: dict[str, Any]) -> Term:
    """The term in a coordination.k8s.io/v1 Lease. Annotations say nothing of a life, so no resourceVersion counts.

    The one that vouches counts only beside the renewal that it was written with.
    """
    spec = lease.get("spec") or {}
    return Term(
        str(spec.get("holderIdentity") or ""),
        str(spec.get("acquireTime") or ""),
        str(spec.get("renewTime") or ""),
        float(spec.get("leaseDurationSeconds") or USUAL_SECONDS),
        vouches(lease),
    )


@dataclass(frozen=True, slots=True)
class Watched:
    """`term` as the last look had it, which was begun at `looked`; it is as it is since `since` at the latest.

    `vouched_after`: of the last renewals of this term that vouched under our eyes, oldest first, what each of them
    certainly came after: the beginning of the look that had not seen it yet.
    """

    term: Term
    looked: float
    since: float
    vouched_after: tuple[float, ...] = ()


def seen_again(before: Watched | None, term: Term, begun: float, answered: float) -> Watched:
    """After another look, which lasted from `begun` to `answered`. Who has just begun to lead has read nothing yet."""
    if before is None or not term.holder or not _same_reign(before.term, term):
        if before is not None and before.term == term:
            return replace(before, looked=begun)
        return Watched(term, begun, answered)
    if before.term.renewed == term.renewed:
        return replace(before, term=term, looked=begun)
    vouched = (*before.vouched_after, before.looked) if term.vouches else before.vouched_after
    return Watched(term, begun, answered, vouched[-RENEWALS:])


def proven(watched: Watched, order_seen: float, now: float) -> bool:
    """Whether an order that the agent first saw at `order_seen` may be read again and obeyed.

    The leader has vouched twice since, whoever asked for the looks: one proof serves all orders from before it. And
    the Lease has not run out since the last time, so that nobody else may lead: an old proof says nothing of an operator
    that has gone meanwhile, or sees nothing any more.
    """
    return (
        len(watched.vouched_after) == RENEWALS
        and order_seen < watched.vouched_after[0]
        and now - watched.vouched_after[-1] < watched.term.seconds
    )


def lapsed(watched: Watched, margin: float) -> bool:
    """Whether it was not renewed for as long as it lasts and `margin` seconds more, between two looks of ours."""
    return watched.looked - watched.since >= watched.term.seconds + margin


def _same_reign(one: Term, other: Term) -> bool:
    return (one.holder, one.acquired) == (other.holder, other.acquired)
