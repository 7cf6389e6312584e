"""The demo's image: seven gzip layers made from real Debian packages, about 350 MB compressed.

Packages are downloaded by apt-get and unpacked by dpkg-deb; a layer's blob is kept in the cache under a name made
of its packages' versions, so only the first run compresses anything. Its program is Debian's static busybox.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.testbed.images import Blob, BuiltImage, BuiltLayer, LayerSpec, build_image, build_layer

LAYERS: tuple[tuple[str, ...], ...] = (
    ("base-files", "busybox-static"),
    ("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
    ("libllvm14", "libclang-cpp14"),
    ("fonts-noto-cjk",),
    ("golang-1.19-src",),
    ("golang-1.19-go",),
    ("openjdk-17-jre-headless",),
)
PROGRAM = ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 2147483647 & wait"]
LEVEL = 2
"""gzip's level: a demo wants bytes quickly, not few."""


class DemoImageError(Exception):
    """A package could not be fetched or unpacked; the message has the command's own words."""


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoImageError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout


def candidate(package: str) -> str:
    """The version that apt would download."""
    for line in run("apt-cache", "policy", package).splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Candidate" and value != "(none)":
            return value
    raise DemoImageError(f"apt knows no package {package}; run apt-get update")


def layer(packages: Sequence[str], cache: Path) -> BuiltLayer:
    """One layer of these packages, from the cache where it is there."""
    versions = [f"{package}={candidate(package)}" for package in packages]
    key = hashlib.sha256(json.dumps([versions, LEVEL]).encode()).hexdigest()[:16]
    record = cache / f"{key}.json"
    if record.exists():
        kept = json.loads(record.read_text())
        blob = cache / kept["file"]
        if blob.exists():
            return BuiltLayer(Blob(kept["mediaType"], kept["digest"], kept["size"], blob), kept["diffID"])
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        downloads, tree = Path(scratch, "debs"), Path(scratch, "tree")
        downloads.mkdir()
        tree.mkdir()
        # apt drops privileges for downloads and warns where its user can't write.
        downloads.chmod(0o777)
        Path(scratch).chmod(0o755)
        run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *versions, cwd=downloads)
        for archive in sorted(downloads.iterdir()):
            run("dpkg-deb", "-x", str(archive), str(tree))
        built = build_layer(LayerSpec(directory=tree, level=LEVEL), cache)
    assert isinstance(built.blob.source, Path)
    kept = {**built.blob.descriptor, "file": built.blob.source.name, "diffID": built.diff_id}
    unfinished = record.with_suffix(".new")
    unfinished.write_text(json.dumps(kept))
    unfinished.rename(record)
    return built


def build(cache: Path, say: Callable[[str], None] = print) -> BuiltImage:
    """The image, its config unique to this call (no two runs share an image ID)."""
    folder = cache / "demo-image"
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < 4 << 30:
        raise DemoImageError(f"{folder} needs 4 GiB free to build the demo image")
    layers = []
    for number, packages in enumerate(LAYERS, 1):
        started = time.monotonic()
        built = layer(packages, folder)
        say(
            f"  layer {number}/{len(LAYERS)}  {built.blob.size / 1e6:6.1f} MB"
            f"  {time.monotonic() - started:5.1f} s  {' '.join(packages)}"
        )
        layers.append(built)
    return build_image(layers, config_extra={"config": {"Cmd": PROGRAM}})
