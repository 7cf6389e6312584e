"""Which hosts serve a registry, in which order: containerd's certs.d folders (docs/hosts.md there).

Read anew for every pull, as containerd does. `hosts_file.py` reads one hosts.toml, `host.py` is what it yields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imageprepull.registry.host import RegistryHost, default_host, split_port
from imageprepull.registry.hosts_file import read_folder

DEFAULT_DIRS = (Path("/etc/containerd/certs.d"),)


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
