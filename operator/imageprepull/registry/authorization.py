"""Who we say we are in each request: challenges answered, tokens kept per (origin, repository), one fetch for all.

`authorization()` gives the header to send; `rejected()` is told that an answer refused it and says whether another
try makes sense. Nothing else in `registry` knows what a token is.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from yarl import URL

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.challenges import Challenge, choose
from imageprepull.registry.credentials import Credential, Credentials
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.transport import Answer, Transport

MAX_TOKEN_ANSWER = 1024 * 1024
DEFAULT_LIFE = 60.0
GRANTS = 1000
"""(origin, repository) pairs that are remembered; a forgotten one costs one more question to the token service."""
_DENIED = frozenset({400, 401, 403, 404, 405})


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(slots=True)
class _Grant:
    """What is known for one (origin, repository). `proven`: an answer has accepted the header since it was made."""

    candidates: list[Credential | None]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    challenge: Challenge | None = None
    header: str | None = None
    until: float = 0.0
    proven: bool = False


class Authorizer:
    """The tokens of one process."""

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._transport = transport
        self._credentials = credentials
        self._grants: Bounded[tuple[str, str], _Grant] = Bounded(GRANTS)

    async def authorization(self, host: RegistryHost, repository: str) -> str | None:
        """The header for a request; None while the registry has not asked for one. Renews what is about to expire."""
        grant = self._grant(host, repository)
        if grant.challenge is None or (grant.header and time.monotonic() < grant.until):
            return grant.header
        async with grant.lock:
            if grant.header is None or time.monotonic() >= grant.until:
                await self._renew(grant, host, repository)
        return grant.header

    def accepted(self, host: RegistryHost, repository: str, header: str | None) -> None:
        """An answer that was no refusal: the header is good, and a later refusal means that it expired."""
        grant = self._grant(host, repository)
        if header is not None and grant.header == header:
            grant.proven = True

    async def rejected(
        self, host: RegistryHost, repository: str, sent: str | None, challenges: Sequence[Challenge]
    ) -> bool:
        """Learn from a 400, 401 or 403; True when the request should be sent once more.

        A header that worked before has expired: it is made anew from the same credential. One that never worked
        belongs to another repository or is wrong: the next credential's turn. When all are spent: False.
        """
        grant = self._grant(host, repository)
        async with grant.lock:
            if grant.header != sent:
                return grant.header is not None  # Another request has renewed it meanwhile.
            if sent is None and not challenges:
                return False
            if challenges:
                grant.challenge = choose(challenges)
                if grant.challenge is None:
                    schemes = ", ".join(sorted({challenge.scheme for challenge in challenges}))
                    raise _denied(
                        f"it wants {schemes!r}, which is not supported", host, "UnsupportedAuthorization"
                    )
            if sent is not None and not grant.proven:
                grant.candidates.pop(0)
            grant.header, grant.proven = None, False
            if not grant.candidates:
                self._forget(host, repository)
                return False
            await self._renew(grant, host, repository)
            return True

    async def _renew(self, grant: _Grant, host: RegistryHost, repository: str) -> None:
        """Make a header from the first credential that the token service accepts."""
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
        raise refused or _denied("no credentials are left to try", host, "CredentialsRejected")

    async def _header(
        self, challenge: Challenge, credential: Credential | None, host: RegistryHost, repository: str
    ) -> tuple[str, float]:
        if challenge.scheme == "basic":
            if credential is None or not credential.username:
                raise _denied(
                    "it wants a user name and password, and none is configured for it",
                    host,
                    "DeniedOrMissing",
                )
            return _basic(credential), float("inf")
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}", float("inf")
        return await self._token(challenge, credential, host, repository)

    async def _token(
        self, challenge: Challenge, credential: Credential | None, host: RegistryHost, repository: str
    ) -> tuple[str, float]:
        realm = await self._realm(challenge.parameters["realm"], host)
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        query = {"scope": scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if credential is not None:
            form = {**query, "client_id": "imageprepull"}
            if credential.identity_token:
                form |= {"grant_type": "refresh_token", "refresh_token": credential.identity_token}
            else:
                form |= {
                    "grant_type": "password",
                    "username": credential.username,
                    "password": credential.password,
                }
            answer = await self._ask("POST", realm, host, {}, form)
            if answer.status not in _DENIED or not credential.username or credential.identity_token:
                return await _read(answer)
            answer.response.close()
        headers = {"Authorization": _basic(credential)} if credential is not None else {}
        # A scope may list several, blank-separated; as parameters they stand alone.
        pairs = [("service", service)] if service else []
        pairs += [("scope", part) for part in scope.split()]
        return await _read(await self._ask("GET", realm.update_query(pairs), host, headers, None))

    async def _ask(
        self, method: str, url: URL, host: RegistryHost, headers: dict[str, str], form: dict[str, str] | None
    ) -> Answer:
        response = await self._transport.exchange(method, url, headers, host, form)
        authenticated = form is not None or bool(headers)
        name = url.host_port_subcomponent or ""
        return Answer(response, name, f"{method} {url.path}", authenticated, redirected=False)

    async def _realm(self, text: str, host: RegistryHost) -> URL:
        """The token service's URL, or a refusal: it is the registry, or a man before it, that chose it."""
        base = self._transport.base(host)
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("http", "https") or not realm.host or realm.user:
            raise _denied(f"its token realm {text[:100]!r} is no http address", host, "RealmRefused")
        if realm.scheme == "http" and base.scheme == "https":
            raise _denied(f"its token realm {realm.host} is without TLS", host, "RealmRefused")
        try:
            await self._transport.check(base, realm, host.name, "token realm")
        except RegistryError as error:
            error.reason = "RealmRefused" if error.reason == "RedirectRefused" else error.reason
            raise
        return realm

    def _grant(self, host: RegistryHost, repository: str) -> _Grant:
        key = (host.url, repository)
        grant = self._grants.touch(key)
        if grant is None:
            found: list[Credential | None] = list(self._credentials.lookup(host.name, repository))
            grant = self._grants[key] = _Grant(found or [None])
        return grant

    def _forget(self, host: RegistryHost, repository: str) -> None:
        # The next pull asks the credential source anew: secrets are rotated.
        self._grants.pop((host.url, repository), None)


async def _read(answer: Answer) -> tuple[str, float]:
    """A token and its life in seconds, counted from now: clocks of registries are not trusted."""
    try:
        if answer.status != 200:  # noqa: PLR2004
            error = await answer.error()
            if answer.status in _DENIED:
                error.kind = ErrorKind.CREDENTIALS
                error.reason = "CredentialsRejected" if answer.authenticated else "DeniedOrMissing"
            raise error
        body = await answer.read(MAX_TOKEN_ANSWER)
    finally:
        answer.response.close()
    try:
        document = msgspec.json.decode(body, type=_Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _Token()
    token = document.access_token or document.token
    if not token or any(ord(letter) < 33 or ord(letter) > 126 for letter in token):  # noqa: PLR2004 - visible ASCII
        raise RegistryError(
            "the token service answered without a token",
            reason="NotARegistryAnswer",
            host=answer.host,
            request=answer.request,
            status=answer.status,
        )
    life = document.expires_in if document.expires_in and document.expires_in > 0 else DEFAULT_LIFE
    # Renewed a little early: a request that leaves with it must still arrive in time.
    return f"Bearer {token}", life - min(life * 0.1, 10)


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _denied(problem: str, host: RegistryHost, reason: str) -> RegistryError:
    return RegistryError(problem, reason=reason, kind=ErrorKind.CREDENTIALS, host=host.name)
