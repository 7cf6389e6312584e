"""Who we say we are in each request: challenges answered, tokens kept per (origin, repository), one fetch for all.

`authorization()` gives the header to send; `rejected()` is told that an answer refused it and says whether another
try makes sense. `tokens.py` asks the token service; nothing else in `registry` knows what a token is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.challenges import Challenge, choose
from imageprepull.registry.credentials import Credential, Credentials
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.tokens import TokenService, basic, denied
from imageprepull.registry.transport import Transport

GRANTS = 1000
"""(origin, repository) pairs that are remembered; a forgotten one costs one more question to the token service."""


@dataclass(slots=True)
class _Grant:
    """What is known for one (origin, repository). `proven`: an answer has accepted the header since it was made.

    `turn` counts the attempts to make a header, and `failure` is how the last one ended: who waited for it is told so
    and does not try the same again, one after the other.
    """

    candidates: list[Credential | None]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    challenge: Challenge | None = None
    header: str | None = None
    until: float = 0.0
    proven: bool = False
    turn: int = 0
    failure: RegistryError | None = None

    def waited(self, turn: int) -> None:
        """Raise what another's attempt since `turn` ended with."""
        if self.turn != turn and self.failure is not None:
            raise self.failure.again()


class Authorizer:
    """The tokens of one process."""

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._tokens = TokenService(transport)
        self._credentials = credentials
        self._grants: Bounded[tuple[str, str], _Grant] = Bounded(GRANTS)

    async def authorization(self, host: RegistryHost, repository: str) -> str | None:
        """The header for a request; None while the registry has not asked for one. Renews what is about to expire."""
        grant = self._grant(host, repository)
        if grant.challenge is None or (grant.header and time.monotonic() < grant.until):
            return grant.header
        turn = grant.turn
        async with grant.lock:
            grant.waited(turn)
            if grant.header is None or time.monotonic() >= grant.until:
                await self._renew(grant, host, repository)
        return grant.header

    def names_us(self, host: RegistryHost, repository: str) -> bool:
        """Whether the header was made from a credential; a token that anybody gets says nothing about us."""
        candidates = self._grant(host, repository).candidates
        return bool(candidates) and candidates[0] is not None

    def may_name_us(self, host: RegistryHost, repository: str) -> bool:
        """Whether there is a credential left that a header could be made from."""
        return any(one is not None for one in self._grant(host, repository).candidates)

    def accepted(self, host: RegistryHost, repository: str, header: str | None) -> None:
        """An answer that was no refusal: the header is good, and a later refusal means that it expired."""
        grant = self._grant(host, repository)
        if header is not None and grant.header == header:
            grant.proven = True

    async def rejected(
        self, host: RegistryHost, repository: str, sent: str | None, challenges: Sequence[Challenge]
    ) -> bool:
        """Learn from a 400, 401 or 403; True when the request should be sent once more.

        A header that worked before has expired: it is made anew, from the same credential if its source still has
        it. One that never worked belongs to another repository or is wrong: the next credential's turn. When all are
        spent: False.
        """
        grant = self._grant(host, repository)
        turn = grant.turn
        async with grant.lock:
            grant.waited(turn)
            if grant.header != sent:
                return grant.header is not None  # Another request has renewed it meanwhile.
            if sent is None and not challenges:
                return False
            if challenges:
                grant.challenge = choose(challenges)
                if grant.challenge is None:
                    schemes = ", ".join(sorted({challenge.scheme for challenge in challenges}))
                    raise denied(
                        f"it wants {schemes!r}, which is not supported", host, "UnsupportedAuthorization"
                    )
            if sent is not None and grant.proven:
                grant.candidates = self._anew(grant.candidates, host, repository)
            elif sent is not None:
                grant.candidates.pop(0)
            grant.header, grant.proven = None, False
            if not grant.candidates:
                self._forget(host, repository)
                return False
            await self._renew(grant, host, repository)
            return True

    async def anonymous(
        self, host: RegistryHost, repository: str, challenges: Sequence[Challenge]
    ) -> str | None:
        """The header that anybody may have; None where there is none. Raises RegistryError."""
        challenge = choose(challenges)
        if challenge is None or challenge.scheme != "bearer":
            return None
        return f"Bearer {(await self._tokens.fetch(challenge, None, host, repository))[0]}"

    async def _renew(self, grant: _Grant, host: RegistryHost, repository: str) -> None:
        """Make a header, and note how that ended."""
        grant.failure = None
        try:
            await self._make(grant, host, repository)
        except RegistryError as error:
            grant.failure = error
            raise
        finally:
            grant.turn += 1

    async def _make(self, grant: _Grant, host: RegistryHost, repository: str) -> None:
        """From the first credential that the token service accepts."""
        challenge = grant.challenge
        assert challenge is not None  # noqa: S101 - callers check
        refused: RegistryError | None = None
        while grant.candidates:
            credential = grant.candidates[0]
            try:
                header, life = await self._header(challenge, credential, host, repository)
            except RegistryError as error:
                if error.kind is not ErrorKind.CREDENTIALS:
                    raise
                refused = error
                grant.candidates.pop(0)
                continue
            grant.header, grant.until, grant.proven = header, time.monotonic() + life, False
            return
        self._forget(host, repository)
        raise refused or denied("no credentials are left to try", host, "CredentialsRejected")

    async def _header(
        self, challenge: Challenge, credential: Credential | None, host: RegistryHost, repository: str
    ) -> tuple[str, float]:
        if challenge.scheme == "basic":
            if credential is None or not credential.username:
                raise denied(
                    "it wants a user name and password, and none is configured for it",
                    host,
                    "DeniedOrMissing",
                )
            return basic(credential), float("inf")
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}", float("inf")
        token, life = await self._tokens.fetch(challenge, credential, host, repository)
        return f"Bearer {token}", life

    def _grant(self, host: RegistryHost, repository: str) -> _Grant:
        key = (host.url, repository)
        grant = self._grants.touch(key)
        if grant is None:
            grant = self._grants[key] = _Grant(self._candidates(host, repository))
        return grant

    def _candidates(self, host: RegistryHost, repository: str) -> list[Credential | None]:
        """What may be tried, in order; an empty credential stands for nobody, as no credential at all does."""
        found = self._credentials.lookup(host.name, repository)
        return [None if one == Credential() else one for one in found] or [None]

    def _anew(
        self, known: Sequence[Credential | None], host: RegistryHost, repository: str
    ) -> list[Credential | None]:
        """What the source has now, the one that worked first: it may be the token only that has expired."""
        good = known[0] if known else None
        fresh = self._candidates(host, repository)
        return sorted(fresh, key=lambda one: one != good)

    def _forget(self, host: RegistryHost, repository: str) -> None:
        # The next pull asks the credential source anew: secrets are rotated.
        self._grants.pop((host.url, repository), None)
