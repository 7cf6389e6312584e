"""What a container sees: runc on the overlay of our layers and on that of containerd's own, told by the container."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.containerd.differential.cases.table import LOWER, plain
from tests.containerd.differential.layers import OCI_GZIP, OCI_ZSTD, Chain, Layer, gzipped, zstd
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.tarbytes import (
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    tar,
    whiteout,
)

BUSYBOX = Path("/usr/bin/busybox")
# Everything that a container can see of a file; times of what no tar gave are left out by `told`.
LOOK = r"""
cd /
find . -xdev ! -path './proc*' ! -path './dev*' ! -path './sys*' | sort | while read -r path; do
  stat -c '%n|%F|%a|%u|%g|%t:%T|%Y' "$path"
  [ -L "$path" ] && echo "  leads to $(readlink "$path")"
  [ -f "$path" ] && [ ! -L "$path" ] && echo "  holds $(md5sum <"$path") in $(stat -c '%s bytes, %h links' "$path")"
done
echo complete
"""

SYSTEM = plain(
    tar(
        directory("bin"),
        file("bin/busybox", BUSYBOX.read_bytes() if BUSYBOX.exists() else b"", mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in ("sh", "find", "stat", "sort", "readlink", "md5sum")),
        *(directory(name, 0o555) for name in ("proc", "dev", "sys")),
        directory("tmp", 0o1777),
    )
)
CHANGES = Layer(
    gzipped(
        tar(
            whiteout("f"),
            whiteout("d/old"),
            file("d/new", b"above", uid=5, gid=6, mode=0o4711),
            hardlink("d/again", "d/new", uid=5, gid=6, mode=0o4711),
            opaque("usr/lib"),
            file("usr/lib/only", b"visible"),
            file("s/in/deep/file"),
            symlink("into", "d/new"),
            fifo("pipe", mode=0o620),
            char("tty", 5, 0, mode=0o660, gid=5),
        )
    ),
    OCI_GZIP,
)
MORE = Layer(
    zstd(
        tar(
            file("f", b"back again", mode=0o400, uid=9),
            file("lib/hides-the-link"),
            whiteout("abs"),
            whiteout("usr/lib/only"),
            directory("d", 0o1770, uid=1, gid=2, mtime=1_000_000_000),
            hardlink("f2", "f", mode=0o400, uid=9),
        )
    ),
    OCI_ZSTD,
)


def numbered(count: int) -> Chain:
    """A tall image: every layer changes what those below it left."""
    return tuple(
        plain(
            tar(
                file(f"layers/{number}", b"%d" % number, uid=number),
                file("top", b"%d" % number),
                whiteout(f"layers/{number - 2}") if number % 3 == 2 else symlink(f"link{number}", "top"),
            )
        )
        for number in range(count)
    )


IMAGES: dict[str, Chain] = {
    "one-layer": (SYSTEM,),
    "changed-and-hidden": (SYSTEM, LOWER, CHANGES),
    "changed-twice": (SYSTEM, LOWER, CHANGES, MORE),
    "same-layer-again": (SYSTEM, LOWER, CHANGES, LOWER),
    # What overlayfs and containerd allow at most.
    "127-layers": (SYSTEM, *numbered(126)),
}


@contextlib.contextmanager
def overlay(layers: Sequence[Path], scratch: Path) -> Iterator[Path]:
    """The layers as a container has them. Names are kept short: the options of a mount are 4096 bytes at most."""
    short = scratch / "l"
    short.mkdir(parents=True)
    for number, layer in enumerate(layers):
        (short / str(number)).symlink_to(layer)
    merged, upper, work = (scratch / name for name in ("merged", "upper", "work"))
    for folder in (merged, upper, work):
        folder.mkdir()
    lowers = ":".join(str(number) for number in reversed(range(len(layers))))
    options = f"lowerdir={lowers},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-i", "-t", "overlay", "-o", options, "overlay", merged], cwd=short, check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)
        shutil.rmtree(scratch)


def told(layers: Sequence[Path], scratch: Path) -> list[str]:
    """What a container on these layers says of its files."""
    with overlay(layers, scratch) as root:
        bundle = scratch / "bundle"
        bundle.mkdir()
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": ["sh", "-c", LOOK]}
        config["root"] = {"path": str(root), "readonly": False}
        (bundle / "config.json").write_text(json.dumps(config))
        done = subprocess.run(
            ["runc", "--root", scratch / "runc", "run", "--bundle", bundle, f"fidelity-{os.getpid()}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "complete"
    return [line if line.startswith("  ") else without_present_time(line) for line in lines]


def without_present_time(line: str) -> str:
    head, _, seconds = line.rpartition("|")
    return f"{head}|{'now' if seconds.isdigit() and int(seconds) > 1_700_000_000 else seconds}"


@pytest.mark.parametrize("image", IMAGES)
def test_a_container_sees_the_same(image: str, theirs: Reference, mine: Ours) -> None:
    chain = IMAGES[image]
    scratch = theirs.folder / "container"
    with mine.laid_out(chain) as (outcomes, layers):
        assert outcomes[-1].accepted, outcomes[-1].refusal
        here = told(layers, scratch)
    assert len(here) > len(chain)
    for version, directories in theirs.lay_out(chain).items():
        assert told(directories, scratch) == here, version
