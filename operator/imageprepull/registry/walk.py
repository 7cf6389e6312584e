"""Through the hosts of a registry in their order, per request, until one answers: the fallback of containerd.

Mirrors that do not answer are passed over for a while and must begin to answer soon; the upstream comes last, is
always asked, and its answer is the one that counts. Below `resolving` and `fetching`, which say what to ask; above
`hosts`, which says whom.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from imageprepull.oci.reference import Reference
from imageprepull.registry.errors import RegistryError, verdict
from imageprepull.registry.health import Breakers, FaultMemory
from imageprepull.registry.holds import REGISTRY_HELD
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig

T = TypeVar("T")
Ask = Callable[[RegistryHost, float | None], Awaitable[T]]
"""A question to one host; the number is the seconds it has until it begins to answer, None for the upstream."""


class Walk:
    """The way through the hosts, with what is remembered of them."""

    def __init__(
        self, hosts: HostsConfig, *, first_byte: float, breakers: Breakers, memory: FaultMemory
    ) -> None:
        self._hosts = hosts
        self._first_byte = first_byte
        self._breakers = breakers
        self.memory = memory

    def hosts(self, reference: Reference, *, by_tag: bool) -> list[RegistryHost]:
        """Who may be asked, the upstream last. Raises RegistryError when nobody may."""
        hosts = [host for host in self._hosts.lookup(reference.registry) if host.serves(by_tag=by_tag)]
        if not hosts:
            raise RegistryError(
                f"no host in hosts.toml may be asked for {reference.canonical}; check the capabilities",
                reason="InvalidHostsFile",
            )
        return hosts

    async def first(self, hosts: Sequence[RegistryHost], digest: str | None, ask: Ask[T]) -> T:
        """The first answer. Raises what the upstream said, with the others' errors beside it."""
        upstream = hosts[-1]
        order = list(hosts)
        if digest is not None:
            order.sort(key=lambda host: self.memory.rank(host.name, digest))
        errors: dict[RegistryHost, RegistryError] = {}
        passed_over: list[RegistryHost] = []
        for host in order:
            if host is not upstream and not self._breakers.allows(host.url):
                passed_over.append(host)
                continue
            try:
                return await self._ask(host, upstream, digest, ask)
            except RegistryError as error:
                if error.reason == "InvalidHostsFile":
                    raise  # as containerd: passed over, it would send the pull silently elsewhere.
                errors[host] = error
        # Nobody else can help: better a mirror that may be dead than none.
        if all(error.retryable for error in errors.values()):
            for host in passed_over:
                try:
                    return await self._ask(host, upstream, digest, ask)
                except RegistryError as error:
                    errors[host] = error
        raise verdict([errors[host] for host in hosts if host in errors])

    async def _ask(self, host: RegistryHost, upstream: RegistryHost, digest: str | None, ask: Ask[T]) -> T:
        mirror = host is not upstream
        # A host that was given a time to connect in gets the time to answer in on top of it.
        deadline = self._first_byte + (host.dial_timeout or 0) if mirror else None
        try:
            found = await ask(host, deadline)
        except RegistryError as error:
            if error.reason == REGISTRY_HELD:
                raise  # Nobody was asked: it says nothing about the host.
            if not error.unanswered:
                self._breakers.answered(host.url)
            elif mirror:
                self._breakers.unanswered(host.url)
            if digest is not None:
                self.memory.refused(host.name, digest, error)
            raise
        self._breakers.answered(host.url)
        return found
