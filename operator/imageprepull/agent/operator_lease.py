"""Whether an operator lives: its leader renews the Lease under our eyes. Asked before anything is deleted.

An order of an operator that is away is nobody's: a newer object may want the image, or the order may come from a
restored backup, and nobody is there to take it back. No clock of another machine is compared; what counts are
changes that we see, as client-go's leader election reads leases.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from imageprepull.agent.node import NodeError
from imageprepull.agent.orders import NOT_CONFIRMED
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import LEASES

OPERATOR_AWAY = "OperatorAway"
RENEWALS = 2
"""Within one term. Between them the leader had a whole interval to read the node's object and take an order back."""
USUAL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Term:
    """What a Lease says: who leads since when, when it was renewed (as its holder's clock has it), for how long."""

    holder: str = ""
    acquired: str = ""
    renewed: str = ""
    seconds: float = USUAL_SECONDS


def term_of(lease: dict[str, Any]) -> Term:
    """The term in a coordination.k8s.io/v1 Lease. Annotations say nothing of a life, so no resourceVersion counts."""
    spec = lease.get("spec") or {}
    return Term(
        str(spec.get("holderIdentity") or ""),
        str(spec.get("acquireTime") or ""),
        str(spec.get("renewTime") or ""),
        float(spec.get("leaseDurationSeconds") or USUAL_SECONDS),
    )


def renewals(before: Term, now: Term, count: int) -> int:
    """How often one term was renewed under our eyes. Who has just begun to lead has read nothing yet: from 0."""
    if not now.holder or (now.holder, now.acquired) != (before.holder, before.acquired):
        return 0
    return count + (now.renewed != before.renewed)


class OperatorLease:
    """The Lease `name`, looked at every `poll` seconds for as long as it lasts plus `margin` seconds."""

    def __init__(self, api: ApiClient, *, namespace: str, name: str, poll: float, margin: float) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._poll = poll
        self._margin = margin
        self._dead: Term | None = None
        """As it looked when nobody had renewed it in time: whoever asks again is answered by one look."""

    def __str__(self) -> str:
        return f"Lease {self._namespace}/{self._name}"

    async def prove(self) -> None:
        """Return when the leader has renewed it twice.

        Raises:
            NodeError: OperatorAway; OrderNotConfirmed when the Lease cannot be read.
        """
        term, count, problem = await self._read(), 0, None
        if term == self._dead:
            raise self._away(term)
        until = time.monotonic() + term.seconds + self._margin
        while count < RENEWALS:
            if time.monotonic() >= until:
                if problem is not None:
                    raise problem
                self._dead = term
                raise self._away(term)
            await asyncio.sleep(self._poll)
            try:
                now, problem = await self._read(), None
            except NodeError as error:
                if error.permanent:
                    raise
                problem = error
                continue
            count = renewals(term, now, count)
            if now != term:
                until = time.monotonic() + now.seconds + self._margin
                term = now

    async def _read(self) -> Term:
        try:
            return term_of(await self._api.get(LEASES, self._name, self._namespace))
        except ApiError as error:
            if error.not_found:
                raise NodeError(
                    OPERATOR_AWAY,
                    f"nothing is deleted without an operator: there is no {self}",
                    permanent=True,
                ) from error
            raise NodeError(
                NOT_CONFIRMED,
                f"whether an operator lives cannot be read: {error}",
                permanent=not error.temporary,
                retry_after=error.retry_after,
            ) from error

    def _away(self, term: Term) -> NodeError:
        whose = f"{term.holder} has not renewed it" if term.holder else "nobody holds it"
        return NodeError(
            OPERATOR_AWAY,
            f"waits for the operator, without which nothing is deleted: {whose} for {term.seconds + self._margin:g} s "
            f"({self})",
        )
