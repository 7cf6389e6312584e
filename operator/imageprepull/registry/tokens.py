"""Tokens from a registry's token service: asked as the challenge says, the answer read and its life counted.

`authorization.py` keeps them and decides when to ask; here one question is asked. Realms are chosen by whoever
answers for the registry, so they are judged before anything is sent there.
"""

from __future__ import annotations

import asyncio
import base64

import msgspec
from yarl import URL

from imageprepull.registry.answer import Answer
from imageprepull.registry.bounded import Bounded
from imageprepull.registry.challenges import Challenge
from imageprepull.registry.credentials import Credential
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.redirects import http_url
from imageprepull.registry.transport import Transport

MAX_TOKEN_ANSWER = 1024 * 1024
DEFAULT_LIFE = 60.0
ROTATED = 1000
"""Identity tokens whose successors are remembered."""
DENIED = frozenset({400, 401, 403, 404, 405})
_OK = 200


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float | None = None


class TokenService:
    """The token services of all registries."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # Some identity tokens are good for one use and answered with the next; a second use revokes them all.
        self._rotated: Bounded[tuple[str, str], str] = Bounded(ROTATED)
        self._locks: Bounded[tuple[str, str], asyncio.Lock] = Bounded(ROTATED)

    async def fetch(
        self, challenge: Challenge, credential: Credential | None, host: RegistryHost, repository: str
    ) -> tuple[str, float]:
        """A token and its life in seconds from now.

        Raises:
            RegistryError: kind CREDENTIALS when the service refuses the credential, RealmRefused, or what was wrong
                with its answer.
        """
        realm = self._realm(challenge.parameters["realm"], host)
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        query = {"scope": scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if credential is not None and credential.identity_token:
            return await self._refresh(realm, query, credential.identity_token, host)
        if credential is not None:
            form = {
                **query,
                "client_id": "imageprepull",
                "grant_type": "password",
                "username": credential.username,
                "password": credential.password,
            }
            answer = await self._ask("POST", realm, host, {}, form)
            if answer.status not in DENIED or not credential.username:
                return _life(await _read(answer))
            answer.response.close()
        headers = {"Authorization": basic(credential)} if credential is not None else {}
        # A scope may list several, blank-separated; as parameters they stand alone.
        pairs = [("service", service)] if service else []
        pairs += [("scope", part) for part in scope.split()]
        return _life(await _read(await self._ask("GET", realm.update_query(pairs), host, headers, None)))

    async def _refresh(
        self, realm: URL, query: dict[str, str], identity_token: str, host: RegistryHost
    ) -> tuple[str, float]:
        key = (str(realm.origin()), identity_token)
        lock = self._locks.touch(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:  # one at a time: two uses of one token are what revokes it.
            form = {
                **query,
                "client_id": "imageprepull",
                "grant_type": "refresh_token",
                "refresh_token": self._rotated.touch(key) or identity_token,
            }
            try:
                token = await _read(await self._ask("POST", realm, host, {}, form))
            except RegistryError as error:
                if error.kind is ErrorKind.CREDENTIALS:
                    self._rotated.pop(key, None)
                raise
            if token.refresh_token:
                self._rotated[key] = token.refresh_token
            return _life(token)

    async def _ask(
        self, method: str, url: URL, host: RegistryHost, headers: dict[str, str], form: dict[str, str] | None
    ) -> Answer:
        try:
            limit = await self._transport.check(host, url, "token realm")
            response = await self._transport.exchange(method, url, headers, host, form, limit=limit)
        except RegistryError as error:
            error.reason = "RealmRefused" if error.reason == "RedirectRefused" else error.reason
            raise
        authenticated = form is not None or bool(headers)
        name = url.host_port_subcomponent or ""
        return Answer(
            response,
            name,
            f"{method} {url.path}",
            authenticated,
            redirected=False,
            limits=self._transport.limits,
        )

    def _realm(self, text: str, host: RegistryHost) -> URL:
        """The token service's URL, or a refusal: it is the registry, or a man before it, that chose it."""
        realm = http_url(text, encoded=False)
        if realm is None:
            raise denied(f"its token realm {text[:100]!r} is no http address", host, "RealmRefused")
        if realm.scheme == "http" and self._transport.base(host).scheme == "https":
            raise denied(f"its token realm {realm.raw_host} is without TLS", host, "RealmRefused")
        return realm


async def _read(answer: Answer) -> _Token:
    """The token of an answer."""
    try:
        if answer.status != _OK:
            error = await answer.error()
            if answer.status in DENIED and error.kind is not ErrorKind.THROTTLED:
                error.kind = ErrorKind.CREDENTIALS
                error.reason = "CredentialsRejected" if answer.authenticated else "DeniedOrMissing"
            raise error
        body = await answer.read(MAX_TOKEN_ANSWER)
    finally:
        answer.leave()
    try:
        document = msgspec.json.decode(body, type=_Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _Token()
    document.token = document.access_token or document.token
    if not document.token or any(ord(letter) < 33 or ord(letter) > 126 for letter in document.token):  # noqa: PLR2004
        raise answer.fault("the token service answered without a token", "NotARegistryAnswer")
    return document


def _life(document: _Token) -> tuple[str, float]:
    """The token and its seconds, counted from now: clocks of registries are not trusted."""
    life = document.expires_in if document.expires_in and document.expires_in > 0 else DEFAULT_LIFE
    # Renewed a little early: a request that leaves with it must still arrive in time.
    return document.token, life - min(life * 0.1, 10)


def basic(credential: Credential) -> str:
    """The header of a user name and password."""
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def denied(problem: str, host: RegistryHost, reason: str) -> RegistryError:
    """An error that other credentials, or another registry, could mend."""
    return RegistryError(problem, reason=reason, kind=ErrorKind.CREDENTIALS, host=host.name)
