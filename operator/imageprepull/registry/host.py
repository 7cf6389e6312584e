"""One host of a registry, and what a registry's own host is where nothing is configured. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from imageprepull.registry.errors import RegistryError

CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
HUB = "docker.io"
_HUB_UPSTREAM = "registry-1.docker.io"


class InvalidHostsFile(RegistryError):
    """A hosts.toml that cannot be followed. Reported, not passed over: the pull would silently go elsewhere."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}", reason="InvalidHostsFile")


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """A host to ask. `url` has the path up to and with `/v2`, and no slash at its end.

    `https_first`: the scheme is http, but https is tried before it, as containerd does for localhost and where
    TLS settings are given. `is_proxy`: not the reference's own host; it is told that one by `?ns=`.
    `client` are pairs of certificate and key file, the key None where one file has both. `headers` go with each
    request to this host and nowhere else; they may hold secrets. `dial_timeout` is in seconds. `named_by` is the
    host that sent us to this one; None where the user or hosts.toml names it.
    """

    url: str
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    skip_verify: bool = False
    https_first: bool = False
    is_proxy: bool = False
    client: tuple[tuple[Path, Path | None], ...] = ()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout: float | None = None
    named_by: RegistryHost | None = None

    @property
    def name(self) -> str:
        """Host and port as written."""
        return self.url.partition("://")[2].partition("/")[0]

    def serves(self, *, by_tag: bool) -> bool:
        """A digest can be asked of whoever may be pulled from; what a tag is, only of those trusted to resolve."""
        return "pull" in self.capabilities and (not by_tag or "resolve" in self.capabilities)


def default_host(registry: str) -> RegistryHost:
    """The registry's own host where nothing is configured: https, except on loopback as containerd has it."""
    if registry == HUB:
        return RegistryHost(f"https://{_HUB_UPSTREAM}/v2")
    name, port = split_port(registry)
    if not is_localhost(name):
        return RegistryHost(f"https://{registry}/v2")
    if port in ("", "443"):
        return RegistryHost(f"https://{registry}/v2", skip_verify=True)
    return RegistryHost(f"http://{registry}/v2", skip_verify=port != "80", https_first=port != "80")


def is_localhost(name: str) -> bool:
    """Whether a host name is loopback by its spelling, without asking DNS."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def split_port(registry: str) -> tuple[str, str]:
    """Host and port of `host[:port]`; brackets of IPv6 addresses stay."""
    name, separator, port = registry.rpartition(":")
    return (name, port) if separator and not registry.endswith("]") else (registry, "")
