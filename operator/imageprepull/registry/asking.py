"""One question to one host: who we are, where the host sends us, and once more where that helps.

Above `transport` (HTTP) and `authorization` (tokens), below `resolving` and `fetching`, which know what the answers
are for.
"""

from __future__ import annotations

from collections.abc import Mapping

from yarl import URL

from imageprepull.oci.reference import Reference
from imageprepull.registry.answer import Answer
from imageprepull.registry.authorization import Authorizer
from imageprepull.registry.elsewhere import DENIED, Elsewhere
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.redirects import STALE, Locations, http_url
from imageprepull.registry.transport import Transport

AUTHORIZATION_TRIES = 8
"""Requests for one answer; a registry that accepts a token elsewhere and refuses it here must not go on for ever."""
REFUSALS = frozenset({400, 401, 403})
OK, PARTIAL = 200, 206
OUTSIDE_DIAL = 5.0
"""Seconds to connect to where a manifest's `urls` point: nodes without Internet must not wait for it."""


class Asker:
    """The questions of one process."""

    def __init__(self, transport: Transport, authorizer: Authorizer, hosts: HostsConfig) -> None:
        self._transport = transport
        self._authorizer = authorizer
        self._elsewhere = Elsewhere(transport, authorizer, hosts)
        self.locations = Locations()

    async def get(
        self,
        host: RegistryHost,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        *,
        deadline: float | None = None,
    ) -> Answer:
        """A GET that succeeded; its body is not read. Raises RegistryError."""
        answer = await self.ask("GET", host, reference, path, headers, deadline=deadline)
        if answer.status not in (OK, PARTIAL):
            raise await answer.error()
        return answer

    async def ask(
        self,
        method: str,
        host: RegistryHost,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        *,
        deadline: float | None = None,
    ) -> Answer:
        """One request, sent again while the authorizer finds another way in."""
        path = _told(host, reference, path)
        for left in reversed(range(AUTHORIZATION_TRIES)):
            header = await self._authorizer.authorization(host, reference.path)
            answer = await self._transport.request(method, host, path, headers, header, deadline=deadline)
            answer.authenticated = header is not None and self._authorizer.names_us(host, reference.path)
            # A refusal from where the registry sent us says nothing about what we told the registry.
            if answer.redirected or answer.status not in REFUSALS:
                self._authorizer.accepted(host, reference.path, header)
                if answer.redirected and answer.status == DENIED:
                    return await self._elsewhere.ask(
                        answer, method, host, reference, headers, deadline=deadline
                    )
                return answer
            try:
                again = await self._authorizer.rejected(host, reference.path, header, answer.challenges)
            except BaseException:
                answer.response.close()
                raise
            if not again or not left:
                return answer
            answer.response.close()
        raise AssertionError("the last try returns")

    async def ask_blob(
        self,
        host: RegistryHost,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        *,
        deadline: float | None = None,
    ) -> Answer:
        """A GET of a blob or a part: at the place where the last one was found, else at the registry.

        A place that refuses has gone stale: one asks the registry anew, the others wait for what it learns. A place
        that refuses right after that is what the answer says.
        """
        place = self.locations.place(host.url, path)

        async def from_registry() -> Answer:
            answer = await self.ask("GET", host, reference, path, headers, deadline=deadline)
            if answer.redirected and answer.status in (OK, PARTIAL):
                place.learn(answer.url)
            elif not answer.redirected:
                place.target = None  # It serves the blob itself now.
            return answer

        known = place.target
        if known is None:
            return await from_registry()
        if target := place.current():
            answer = await self._there(host, target, path, headers, deadline)
            if answer.status not in STALE:
                return answer
            answer.response.close()
            place.spoil(target)
        turn = place.turn
        async with place.lock:
            fresh = place.current()
            if place.turn == turn and (fresh is None or fresh == target):
                try:
                    return await from_registry()
                finally:
                    place.turn += 1
        if fresh is None or fresh == target:
            return await from_registry()
        return await self._there(host, fresh, path, headers, deadline)

    def spoil(self, host: RegistryHost, path: str, target: URL) -> None:
        """A body from `target` broke off: the next part is asked for at the registry."""
        self.locations.place(host.url, path).spoil(target)

    async def outside(self, url: str, near: RegistryHost, headers: Mapping[str, str]) -> Answer:
        """A GET of a URL that a manifest names: without credentials, settings or headers of any host.

        Raises:
            RegistryError: RedirectRefused when it is more private than `near`, the registry of the image.
        """
        target = http_url(url)
        if target is None:
            raise RegistryError(f"the layer's URL {url[:100]!r} is no http address", reason="InvalidAddress")
        nobody = RegistryHost(str(target.origin()), dial_timeout=OUTSIDE_DIAL, named_by=near)
        return await self._transport.go("GET", nobody, target, headers)

    async def public(self, host: RegistryHost, reference: Reference, path: str) -> bool:
        """Whether nobody in particular may read what our credentials were refused for. Raises nothing."""
        try:
            answer = await self._transport.request("HEAD", host, path, {}, None)
            answer.response.release()
            if answer.status == DENIED:
                header = await self._authorizer.anonymous(host, reference.path, answer.challenges)
                if header is None:
                    return False
                answer = await self._transport.request("HEAD", host, path, {}, header)
                answer.response.release()
        except RegistryError:
            return False
        return answer.status == OK

    async def _there(
        self, host: RegistryHost, target: URL, path: str, headers: Mapping[str, str], deadline: float | None
    ) -> Answer:
        """A part from a known place. Without credentials: they are for the registry's own origin."""
        try:
            answer = await self._transport.go(
                "GET", host, target, headers, deadline=deadline, request=f"GET {URL(host.url).path}{path}"
            )
        except RegistryError:
            self.locations.place(host.url, path).spoil(target)
            raise
        answer.redirected = True
        return answer


def _told(host: RegistryHost, reference: Reference, path: str) -> str:
    """The path, with whom it is about where the host serves for others."""
    return f"{path}?ns={reference.registry}" if host.is_proxy else path
