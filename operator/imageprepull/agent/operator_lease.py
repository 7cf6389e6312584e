"""Whether an operator lives and sees: its leader renews the Lease under our eyes, and vouches for what it orders.

Asked before anything is deleted.

An order of an operator that is away is nobody's: a newer object may want the image, or the order may come from a
restored backup, and nobody is there to take it back. What looks prove is told by renewals.py.
"""

from __future__ import annotations

import asyncio

from imageprepull.agent.clock import Clock
from imageprepull.agent.node import NodeError
from imageprepull.agent.orders import NOT_CONFIRMED
from imageprepull.agent.renewals import RENEWALS, Term, Watched, lapsed, proven, seen_again, term_of
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import LEASES

OPERATOR_AWAY = "OperatorAway"


class OperatorLease:
    """The Lease `name`, looked at every `poll` seconds (jittered) for as long as it lasts plus `margin` seconds."""

    def __init__(
        self, api: ApiClient, *, namespace: str, name: str, poll: float, margin: float, clock: Clock
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._poll = poll
        self._margin = margin
        self._clock = clock
        self._watched: Watched | None = None
        self._doubted = False
        """Whether an earlier order waited for a word in vain, and none came since."""
        self._turn = asyncio.Lock()

    def __str__(self) -> str:
        return f"Lease {self._namespace}/{self._name}"

    async def prove(self, order_seen: float) -> None:
        """Return when the leader was seen to renew it twice after `order_seen`, on the agent's clock, and to vouch.

        Always looks once: whoever leads may have let it go. After that it costs nothing where earlier looks, asked
        for by whatever order, prove it already.

        Raises:
            NodeError: OperatorAway; OrderNotConfirmed when the Lease cannot be read, or its leader does not vouch.
        """
        # One looks at a time, and whoever comes next goes on from what was seen.
        async with self._turn:
            watched = await self._look()
            # Twice, for a leader that is replaced meanwhile; a proof takes half of that at most.
            until = self._clock.now() + RENEWALS * (watched.term.seconds + self._margin)
            problem = None
            while not proven(watched, order_seen, self._clock.now()):
                if problem is None and lapsed(watched, self._margin):
                    raise self._away(watched.term)
                if problem is None and (self._doubted or self._clock.now() >= until):
                    # Not each of many orders waits as long as the first.
                    self._doubted = True
                    raise self._unvouched(watched.term)
                if problem is not None and self._clock.now() >= until:
                    raise problem
                # All nodes look at the one Lease.
                await self._clock.sleep(self._poll * (0.5 + self._clock.uniform()))
                try:
                    watched, problem = await self._look(), None
                except NodeError as error:
                    if error.permanent:
                        raise
                    problem = error

    async def _look(self) -> Watched:
        begun = self._clock.now()
        term = await self._read()
        self._watched = seen_again(self._watched, term, begun, self._clock.now())
        if term.vouches:
            self._doubted = False
        return self._watched

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

    def _unvouched(self, term: Term) -> NodeError:
        return NodeError(
            NOT_CONFIRMED,
            f"{term.holder} leads and does not vouch for what it has ordered ({self}): it cannot see everything that may "
            f"want the image, or cannot take orders back, as its /readyz?verbose says; or it is older than this agent",
        )

    def _away(self, term: Term) -> NodeError:
        whose = f"{term.holder} has not renewed it" if term.holder else "nobody holds it"
        return NodeError(
            OPERATOR_AWAY,
            f"waits for the operator, without which nothing is deleted: {whose} for {term.seconds + self._margin:g} s "
            f"({self})",
        )
