"""Which binaries the testbed builds from Go modules, and where the cache keeps them.

Below it is only the file system; `build.py` fills the cache, everything else asks `path()`. A cache folder is named
after everything that decides what is in it: module versions (go.mod, go.sum), flags, sources and the Go version.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.testbed.errors import ClusterError

MODULES = Path(__file__).parent / "go"
GO_NEEDED = (1, 26, 6)
OTHER_FOLDERS = ("/usr/local/go/bin", str(Path(sys.executable).parent))
"""Where Go is looked for when PATH has none new enough; `packages` puts it beside the interpreter."""
"""The highest `go` line of our go.mod files."""


@dataclass(frozen=True, slots=True)
class Component:
    """One `go build`: a module folder, its packages, and the names its binaries get."""

    name: str
    packages: tuple[str, ...]
    binaries: tuple[str, ...]
    """In the order of `packages`; Go would name each after the last element of its package."""
    variables: str = ""
    """Linker variables (-X) that make the binary tell its version."""

    @property
    def module(self) -> Path:
        """The folder with go.mod."""
        return MODULES / self.name

    @property
    def flags(self) -> tuple[str, ...]:
        """Static and small; the same flags everywhere, so that Go's own build cache is of use."""
        return ("-trimpath", "-ldflags", f"-s -w {self.variables}")

    def key(self) -> str:
        """Twelve hex digits that change when the binaries could."""
        digest = hashlib.sha256(f"{self.packages} {self.flags} {go_version()}".encode())
        for file in sorted(self.module.iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]

    def folder(self) -> Path:
        """Where the cache has this component's binaries, or would have them."""
        return cache_root() / "bin" / f"{self.name}-{self.key()}"


_KUBERNETES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
_VERSION = "k8s.io/component-base/version"

COMPONENTS = {
    component.name: component
    for component in (
        Component("pause", (".",), ("pause",)),
        Component("probe", (".",), ("probe",)),
        Component("etcd", ("go.etcd.io/etcd/server/v3",), ("etcd",)),
        Component(
            "containerd",
            tuple(
                f"github.com/containerd/containerd/v2/cmd/{name}"
                for name in ("containerd", "containerd-shim-runc-v2", "ctr")
            ),
            ("containerd", "containerd-shim-runc-v2", "ctr"),
            "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
        ),
        Component(
            "cri-tools",
            ("sigs.k8s.io/cri-tools/cmd/crictl",),
            ("crictl",),
            "-X sigs.k8s.io/cri-tools/pkg/version.Version=1.37.0",
        ),
        Component(
            "helm",
            ("helm.sh/helm/v4/cmd/helm",),
            ("helm",),
            "-X helm.sh/helm/v4/internal/version.version=v4.3.1",
        ),
        Component(
            "kubernetes",
            tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES),
            _KUBERNETES,
            f"-X {_VERSION}.gitVersion=v1.37.2 -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37",
        ),
    )
}


def cache_root() -> Path:
    """Outside of any checkout, so that a fresh clone starts warm."""
    return Path(os.environ.get("IMAGEPREPULL_CACHE") or Path.home() / ".cache" / "imageprepull")


def go_binary() -> str:
    """The Go tool; raises ClusterError that names the version needed where it is missing or too old."""
    seen = []
    for folder in (*os.environ.get("PATH", "").split(":"), *OTHER_FOLDERS):
        found = shutil.which("go", path=folder)
        if found and found not in seen:
            if _go_version_of(found) >= GO_NEEDED:
                return found
            seen.append(found)
    needed = ".".join(map(str, GO_NEEDED))
    raise ClusterError(
        "go",
        f"Kubernetes 1.37 needs Go {needed} or newer, found {', '.join(seen) or 'none'}; "
        f"run: python -m tests.testbed packages, or install it to /usr/local/go",
    )


def _go_version_of(go: str) -> tuple[int, ...]:
    text = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


@cache
def go_version() -> str:
    """What `go version` prints: it decides about the binaries as much as the sources do."""
    return subprocess.run([go_binary(), "version"], capture_output=True, text=True, check=True).stdout.strip()


def component_of(binary: str) -> Component:
    """The component that holds this binary; KeyError for a name that the testbed does not build."""
    for component in COMPONENTS.values():
        if binary in component.binaries:
            return component
    raise KeyError(f"the testbed builds no binary named {binary!r}")


def path(binary: str) -> Path:
    """Where a binary of the cache is ("containerd", "ctr", "crictl", "kubectl", "helm", …). Builds nothing.

    Raises ClusterError with the command that builds it.
    """
    component = component_of(binary)
    file = component.folder() / binary
    if not file.exists():
        raise ClusterError(binary, f"not built yet; run: python -m tests.testbed.build {component.name}")
    return file
