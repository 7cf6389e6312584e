"""The containerds under test: stock or tuned, in a group that counts their CPU, with a PATH that holds no surprise."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accounting import Group
from benchmarks.images import cache
from tests.testbed import binaries
from tests.testbed.daemon import ContainerdDaemon, DaemonFailedError, binary_of, spawn

DOWNLOADS = 8
RANGE_BYTES = 8 << 20
UNPACKS = 4
DISCARD = "discard_unpacked_layers = false\n"


@dataclass(frozen=True, slots=True)
class Setup:
    """How a containerd is configured.

    `tuned`: what its documentation offers for speed, 2.4 only: parallel ranges, parallel unpacks, igzip.
    `sync`: its files are on disk before a layer counts (`image_pull_with_sync_fs`), 2.4 only. That setting moves
    the CRI's pulls to an older code path without parallel unpacks; the parallel one cannot sync.
    """

    version: str = "2.4"
    tuned: bool = False
    sync: bool = False

    def config(self, stock: str) -> str:
        """The configuration file, from that of the test bed's daemon."""
        text = stock
        if self.tuned:
            text += f"""\
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = {DOWNLOADS}
  concurrent_layer_fetch_buffer = {RANGE_BYTES}
  max_concurrent_unpacks = {UNPACKS}
"""
        if self.sync:
            lines = "  image_pull_with_sync_fs = true\n"
            if self.tuned:
                lines += f"  max_concurrent_downloads = {DOWNLOADS}\n"
                lines += f"  concurrent_layer_fetch_buffer = {RANGE_BYTES}\n"
            head, found, tail = text.partition(DISCARD)
            if not found:
                raise DaemonFailedError(f"the test bed's configuration has no line {DISCARD.strip()!r}")
            text = head + found + lines + tail
        return text


@dataclass
class BenchDaemon(ContainerdDaemon):
    """A containerd whose CPU is counted in `group`."""

    setup: Setup = Setup()
    group: Group = field(default_factory=lambda: Group(Path("/nonexistent")))

    def start(self, *, patience: float = 60.0) -> None:
        """Start it and wait until its CRI is ready."""
        for folder in (self.folder, self.certs_d, self.folder / "cni", self.folder / "empty"):
            folder.mkdir(exist_ok=True)
        config = self.folder / "config.toml"
        config.write_text(self.setup.config(self._config()))
        path = f"{tools()}:{self.folder}/empty" if self.setup.tuned else f"{self.folder}/empty"
        command: list[str | Path] = ["/usr/bin/env", f"PATH={path}", f"LD_LIBRARY_PATH={tools()}"]
        command += [binary_of(self.version), "--config", config, "--log-level", "debug"]
        command += ["--address", self.socket, "--root", self.root, "--state", self.folder / "state"]
        self.process = spawn(self.group.entering(command), self.log)
        self._wait(patience)


def containerds() -> dict[str, Path]:
    """The binaries by series."""
    return {version: binary_of(version) for version in ("1.6", "2.4")}


def crictl() -> Path:
    """The kubelet's way to pull, as a command."""
    return binaries.path("crictl")


def tools() -> Path:
    """A folder with igzip and its library, and nothing else: installed, it would change every containerd here.

    Raises DaemonFailedError where Debian's package cannot be had.
    """
    folder = cache() / "tools"
    if not (folder / "igzip").exists():
        unpacked = folder / "unpacked"
        unpacked.mkdir(parents=True, exist_ok=True)
        script = (
            "apt-get download -q isal libisal2 && for file in *.deb; do dpkg-deb -x $file unpacked; done "
            "&& cp -P $(find unpacked -name 'libisal.so*') . && cp unpacked/usr/bin/igzip ."
        )
        done = subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DaemonFailedError(f"no igzip for the tuned containerd: {done.stderr[-1000:]}")
    return folder
