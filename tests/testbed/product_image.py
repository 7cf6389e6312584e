"""The product's image, built from the repository's Dockerfile by buildah and pushed to a cluster's registry.

The Dockerfile's base is an official Python image; here, without a public registry, it is a Debian made by
debootstrap. Base, build cache and finished images are kept in the cache folder: an image is built once per content
of the files that go into it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.testbed.binaries import cache_root
from tests.testbed.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "operator")
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
BASE = "localhost/imageprepull-base"
PRODUCT = "localhost/imageprepull"
CERTIFICATES = Path("/etc/ssl/certs")


def push(registry_url: str, repository: str, tag: str) -> str:
    """Build the image if its content is new, push it, and return the digest of its manifest."""
    name = build()
    target = f"docker://{registry_url.partition('://')[2]}/{repository}:{tag}"
    with tempfile.NamedTemporaryFile() as digest:
        _buildah("push", "--quiet", "--tls-verify=false", f"--digestfile={digest.name}", name, target)
        return Path(digest.name).read_text().strip()


def build() -> str:
    """The local name of the image of this checkout."""
    name = f"{PRODUCT}:{content_key()}"
    if _exists(name):
        return name
    base = _base()
    started = time.monotonic()
    print("building the product's image", flush=True)
    _buildah(
        "bud", "--quiet", "--layers", "--isolation=chroot", f"--build-arg=BASE={base}",
        # The build talks to the package index with the certificates that this machine trusts.
        f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", "--tag", name, "--file", str(ROOT / "Dockerfile"), str(ROOT),
    )  # fmt: skip
    print(
        f"  {name}: {time.monotonic() - started:.0f} s, {size(name) / 1e6:.0f} MB with its base", flush=True
    )
    return name


def size(name: str) -> int:
    """Bytes of an image's layers, unpacked."""
    found = json.loads(_buildah("images", "--json", name))
    text = str(found[0]["size"]) if found else "0 B"
    number, _, unit = text.partition(" ")
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


def content_key() -> str:
    """Twelve hex digits over everything that goes into the image."""
    digest = hashlib.sha256()
    for name in INPUTS:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode & 0o111}\0".encode())
                digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def values(registry_name: str, repository: str, digest: str) -> list[str]:
    """Helm values for this image from the testbed's registry, which speaks plain http."""
    return [
        f"image.repository={registry_name}/{repository}",
        f"image.digest={digest}",
        f"registry.plainHTTP[0]={registry_name}",
    ]


def example_name(text: str) -> str:
    """The name of the ImagePrepull in an example."""
    match = re.search(r"^  name: (\S+)$", text, re.MULTILINE)
    assert match, "the example has no metadata.name"
    return match[1]


def example_with_image(text: str, image: str) -> str:
    """The example with its first image replaced and the others left out."""
    lines = []
    seen = False
    for line in text.splitlines():
        if re.match(r"\s+- image:", line):
            if seen:
                continue
            seen = True
            line = re.sub(r"image:.*", f"image: {image}", line)  # noqa: PLW2901
        lines.append(line)
    assert seen, "the example names no image"
    return "\n".join(lines) + "\n"


def _base() -> str:
    if _exists(BASE):
        return BASE
    started = time.monotonic()
    print(f"making the base image: debootstrap with {BASE_PACKAGES}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="base-", dir=cache_root()))
    try:
        _run("debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(folder))
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        container = _buildah("from", "scratch").strip()
        _buildah("copy", "--quiet", container, str(folder), "/")
        _buildah("commit", "--quiet", "--rm", container, BASE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  {BASE}: {time.monotonic() - started:.0f} s", flush=True)
    return BASE


def _exists(name: str) -> bool:
    command = [*_command(), "inspect", "--type=image", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _command() -> list[str]:
    storage = cache_root() / "buildah"
    return [
        "buildah",
        f"--root={storage}/root",
        "--runroot=/run/imageprepull-buildah",
        "--storage-driver=overlay",
    ]


def _buildah(command: str, *arguments: str) -> str:
    return _run(*_command(), command, *arguments)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    except FileNotFoundError:
        raise ClusterError(command[0], "not installed; run: python -m tests.testbed packages") from None
    if done.returncode:
        words: Sequence[str] = (done.stdout + done.stderr).strip().splitlines()[-30:]
        raise ClusterError("product image", f"{' '.join(command[:6])} … failed:\n" + "\n".join(words))
    return done.stdout


if __name__ == "__main__":
    sys.exit(print(build()))
