"""Which hosts serve a registry, in which order: containerd's certs.d folders (docs/hosts.md there).

Read anew for every pull, as containerd does. `hosts_file.py` reads one hosts.toml.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imageprepull.registry.errors import RegistryError

DEFAULT_DIRS = (Path("/etc/containerd/certs.d"),)
CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
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
    """

    url: str
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    skip_verify: bool = False
    https_first: bool = False
    is_proxy: bool = False

    @property
    def name(self) -> str:
        """Host and port as written."""
        return self.url.partition("://")[2].partition("/")[0]

    def serves(self, *, by_tag: bool) -> bool:
        """A digest can be asked of whoever may be pulled from; what a tag is, only of those trusted to resolve."""
        return "pull" in self.capabilities and (not by_tag or "resolve" in self.capabilities)


class HostsConfig:
    """The folders with hosts.toml files; the first that knows a registry counts."""

    def __init__(self, dirs: Sequence[Path] = DEFAULT_DIRS) -> None:
        self.dirs = tuple(dirs)

    def lookup(self, registry: str) -> list[RegistryHost]:
        """The hosts to ask for a registry (`docker.io`, `localhost:5000`), in order; the upstream comes last.

        Raises:
            InvalidHostsFile: names the file and what is wrong in it.
        """
        folder = self._folder(registry)
        if folder is None:
            return [default_host(registry)]
        # Here, not at the top: hosts_file.py needs the classes of this module.
        from imageprepull.registry.hosts_file import read_folder  # noqa: PLC0415

        upstream = default_host(registry)
        return [
            replace(host, is_proxy=host.name not in (registry, upstream.name))
            for host in read_folder(folder, upstream)
        ]

    def _folder(self, registry: str) -> Path | None:
        name, port = split_port(registry)
        names = [f"{name}_{port}_", registry, "_default"] if port else [registry, "_default"]
        for root in self.dirs:
            for candidate in names:
                if (root / candidate).is_dir():
                    return root / candidate
        return None


def default_host(registry: str) -> RegistryHost:
    """The registry's own host where nothing is configured: https, except on loopback as containerd has it."""
    if registry == "docker.io":
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
