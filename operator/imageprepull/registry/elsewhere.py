"""A host sent us to another registry that wants to know who we are: told as if that one had been named itself.

It gets the credential that is ours there, never the host's, by its own TLS settings: those of the host that sent us there
say nothing about whom to trust with another registry's password. Beside `asking`, which asks the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from imageprepull.oci.reference import Reference
from imageprepull.registry.answer import Answer
from imageprepull.registry.authorization import Authorizer
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.transport import Transport

DENIED = 401


class Elsewhere:
    """The registries that others send us to."""

    def __init__(self, transport: Transport, authorizer: Authorizer, hosts: HostsConfig) -> None:
        self._transport = transport
        self._authorizer = authorizer
        self._hosts = hosts

    async def ask(
        self,
        answer: Answer,
        method: str,
        host: RegistryHost,
        reference: Reference,
        headers: Mapping[str, str],
        *,
        deadline: float | None,
    ) -> Answer:
        """Once more, with what is ours there; `answer` itself where nothing is. Closes it when it raises.

        Raises:
            RegistryError: its certificate is not one that its own settings trust, or as `Transport.go`.
        """
        url = answer.url
        if not answer.challenges or not url.path.startswith("/v2/"):
            return answer
        closed = False
        try:
            other = self._other(answer, host, reference.path)
            if other is None:
                return answer
            header = await self._authorizer.authorization(other, reference.path)
            if header is None:
                if url.scheme == "https" and _tls(other) != _tls(host):
                    # Where its tokens are is believed only from itself.
                    answer.response.close()
                    closed = True
                    answer = await self._transport.go(method, other, url, headers, deadline=deadline)
                    closed, strange, answer.redirected = False, answer.redirected, True
                    if strange or answer.status != DENIED:
                        return answer
                header = await self._learn(answer, other, reference.path)
        except RegistryError as error:
            if error.kind is ErrorKind.CREDENTIALS and not closed:
                return answer
            answer.response.close()
            raise
        if header is None:
            return answer
        answer.response.close()
        again = await self._transport.go(method, other, url, headers, header, deadline=deadline)
        again.redirected = True
        return again

    async def _learn(self, answer: Answer, other: RegistryHost, repository: str) -> str | None:
        if await self._authorizer.rejected(other, repository, None, answer.challenges):
            return await self._authorizer.authorization(other, repository)
        return None

    def _other(self, answer: Answer, host: RegistryHost, repository: str) -> RegistryHost | None:
        """The registry that answered; None where it is not asked again.

        With nothing to lose it is asked as the host is, as containerd does; with a credential by its own settings, and
        never in the clear where those want TLS.
        """
        url = f"{answer.url.origin()}/v2"
        own = self._hosts.own(answer.url)
        other = replace(own, url=url, https_first=False, is_proxy=False, named_by=host)
        if not self._authorizer.may_name_us(other, repository):
            return RegistryHost(
                url, ca=host.ca, skip_verify=host.skip_verify, client=host.client, named_by=host
            )
        return None if own.url.startswith("https:") and answer.url.scheme == "http" else other


def _tls(host: RegistryHost) -> tuple[object, ...]:
    return host.ca, host.client, host.skip_verify
