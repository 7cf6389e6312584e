"""Which proxy a request goes through: HTTPS_PROXY, HTTP_PROXY and NO_PROXY by the rules of Go's httpproxy package.

containerd follows those rules, so that a node's agent must, too: aiohttp's and Python's own know neither networks
nor ports. The environment is read once, when the client is made.
"""

from __future__ import annotations

import ipaddress
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from yarl import URL

from imageprepull.registry.errors import RegistryError

_SCHEMES = ("http", "https")
_BITS = re.compile(r"[^/]+/[0-9]+")

_MAPPED = 96
"""Bits before the IPv4 address in ::ffff:10.0.0.1."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """`url` is without user and password; `headers` has those."""

    url: URL
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Domain:
    """`.example.com`, and with `itself` also `example.com`."""

    suffix: str
    itself: bool
    port: str

    def matches(self, host: str, port: str) -> bool:
        return (host.endswith(self.suffix) or (self.itself and host == self.suffix[1:])) and self.port in (
            "",
            port,
        )


class NoProxy:
    """The entries of NO_PROXY."""

    def __init__(self, text: str) -> None:
        self._all = False
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._addresses: list[tuple[Address, str]] = []
        self._domains: list[_Domain] = []
        for entry in (part.strip().lower() for part in text.split(",")):
            if entry == "*":
                self._all = True
            elif entry:
                self._add(entry)

    def _add(self, entry: str) -> None:
        if "/" in entry:
            # What Go's ParseCIDR does not take, a netmask too, is a name to it that no host has.
            if not _BITS.fullmatch(entry):
                return
            with suppress(ValueError):
                network = ipaddress.ip_network(entry, strict=False)
                mapped = getattr(network.network_address, "ipv4_mapped", None)
                if mapped is not None and network.prefixlen >= _MAPPED:
                    network = ipaddress.ip_network((mapped, network.prefixlen - _MAPPED))
                self._networks.append(network)
            return
        host, port = _split(entry)
        if address := _address(host):
            self._addresses.append((address, port))
        elif host:
            host = host.removeprefix("*") if host.startswith("*.") else host
            itself = not host.startswith(".")
            self._domains.append(_Domain(_ascii(f".{host}" if itself else host), itself, port))

    def matches(self, host: str, port: str) -> bool:
        """Whether a host is reached without a proxy. Loopback always is."""
        host = host.lower()
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback) or self._all:
            return True
        if address is None:
            return any(domain.matches(host, port) for domain in self._domains)
        return any(
            address.version == network.version and address in network for network in self._networks
        ) or any(address == known and wanted in ("", port) for known, wanted in self._addresses)


class Proxies:
    """The proxies of one process; none unless made from an environment."""

    def __init__(self, *, http: str = "", https: str = "", no_proxy: str = "") -> None:
        self._proxies = {"http": http, "https": https}
        self._no_proxy = NoProxy(no_proxy)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Proxies:
        """What the variables say; capitals win over small letters, as in Go."""
        known = os.environ if environment is None else environment

        def first(name: str) -> str:
            return known.get(name) or known.get(name.lower()) or ""

        # A CGI server would let each client set HTTP_PROXY by its header Proxy.
        http = "" if known.get("REQUEST_METHOD") else first("HTTP_PROXY")
        return cls(http=http, https=first("HTTPS_PROXY"), no_proxy=first("NO_PROXY"))

    def choose(self, url: URL) -> Proxy | None:
        """The proxy for a URL, or None.

        Raises:
            RegistryError: InvalidProxy: the variable holds no address of an http proxy.
        """
        text = self._proxies.get(url.scheme, "").strip()
        host = (url.raw_host or "").partition("%")[0]
        if not text or self._no_proxy.matches(host, str(url.port or "")):
            return None
        return _proxy(text, f"{url.scheme.upper()}_PROXY")


def _proxy(text: str, variable: str) -> Proxy:
    try:
        url = URL(text if "://" in text else f"http://{text}")
        usable = url.scheme in _SCHEMES and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise RegistryError(
            f"{variable} is not of the form http://[user:password@]host[:port]; other kinds of proxies "
            "are not supported",
            reason="InvalidProxy",
        )
    headers: dict[str, str] = {}
    if url.user is not None or url.password is not None:
        pair = f"{url.user or ''}:{url.password or ''}".encode()
        headers["Proxy-Authorization"] = "Basic " + b64encode(pair).decode()
    return Proxy(url.with_user(None).origin(), headers)


def _split(entry: str) -> tuple[str, str]:
    """Host and port of an entry; an IPv6 address has its port behind brackets."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        # Go takes brackets without a port for a name, which no host has.
        return (host, rest[1:]) if rest.startswith(":") else (entry, "")
    host, _, port = entry.partition(":")
    return (entry, "") if ":" in port else (host, port)


def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    # 10.0.0.1 and ::ffff:10.0.0.1 are one address.
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return "." * host.startswith(".") + host.removeprefix(".").encode("idna").decode()
    except UnicodeError:
        return host
