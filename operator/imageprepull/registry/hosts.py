"""Which hosts serve a registry, in which order: containerd's certs.d folders (docs/hosts.md there).

A changed file holds from the next request on, as in containerd, which reads it for every pull; one that has not
changed is not parsed again for every range of a blob. `hosts_file.py` reads one hosts.toml, `host.py` is what it
yields.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from yarl import URL

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.host import HUB, InvalidHostsFile, RegistryHost, default_host
from imageprepull.registry.hosts_file import read_folder

DEFAULT_DIRS = (Path("/etc/containerd/certs.d"),)
REGISTRIES = 1000
"""Registries whose hosts are remembered."""
_FRESH = 2_000_000_000
"""Nanoseconds: a file changed so lately may change again without its time telling so."""

_Signature = tuple[object, ...]


class HostsConfig:
    """The folders with hosts.toml files; the first that knows a registry counts."""

    def __init__(self, dirs: Sequence[Path] = DEFAULT_DIRS) -> None:
        self.dirs = tuple(dirs)
        self._known: Bounded[str, tuple[_Signature, list[RegistryHost]]] = Bounded(REGISTRIES)

    def lookup(self, registry: str) -> list[RegistryHost]:
        """The hosts to ask for a registry (`docker.io`, `localhost:5000`), in order; the upstream comes last.

        Raises:
            InvalidHostsFile: names the file and what is wrong in it.
        """
        folder = self._folder(registry)
        if folder is None:
            return [default_host(registry)]
        signature, settled = _signature(folder)
        known = self._known.touch(registry)
        if known is not None and known[0] == signature:
            return known[1]
        upstream = default_host(registry)
        hosts = [
            replace(host, is_proxy=host.name not in (registry, upstream.name))
            for host in read_folder(folder, upstream)
        ]
        if settled:
            self._known[registry] = signature, hosts
        return hosts

    def own(self, url: URL) -> RegistryHost:
        """How the registry at a URL is asked when it is named itself: its own hosts.toml, or what holds without one.

        Raises:
            InvalidHostsFile: as `lookup`.
        """
        name = url.host_port_subcomponent or ""
        registry = HUB if name == default_host(HUB).name else name
        for host in self.lookup(registry):
            known = URL(host.url)
            if (known.raw_host, known.port) == (url.raw_host, url.port):
                return host
        return default_host(registry)

    def _folder(self, registry: str) -> Path | None:
        for root in self.dirs:
            for candidate in _names(registry):
                path = root / candidate
                try:
                    path.stat()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise InvalidHostsFile(path, f"cannot be read: {error.strerror}") from error
                return path
        return None


def _names(registry: str) -> list[str]:
    """The folders to look for, as containerd's `hostPaths` names them."""
    name, separator, port = registry.rpartition(":")
    return [*([f"{name}_{port}_"] if separator else []), registry, "_default"]


def _signature(folder: Path) -> tuple[_Signature, bool]:
    """What tells that a folder's files have changed, and whether they are old enough for it to be believed."""
    parts: list[object] = []
    newest = 0
    for path in (folder, folder / "hosts.toml"):
        try:
            found = os.stat(path)  # noqa: PTH116 - asked for each request: the cheaper call.
        except OSError as error:
            parts.append(error.errno)
            continue
        parts.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
    return (str(folder), *parts), abs(time.time_ns() - newest) > _FRESH
