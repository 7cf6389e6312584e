"""An ext4 that nobody has used yet: made for one pull, in a sparse file on the real disk, and deleted after it.

The loop device writes past the page cache of the disk below it (direct I/O), so that pages are cached once, as on a
disk. Inode tables and journal are zeroed when it is made, by holes in the file: no kernel thread does so later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import cache
from tests.testbed.daemon import DaemonFailedError, run

PREFIX = "disk-"
GIB = 1 << 30
SIZE = 24 * GIB
NEEDED = 10 * GIB
"""Free bytes on the real disk: an unpacked image, its blobs and a spool."""
BLKIO = Path("/sys/fs/cgroup/blkio")


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted file system."""

    folder: Path
    device: str

    def sync(self) -> float:
        """Write everything to the device; the seconds it took."""
        started = time.monotonic()
        run_sync(self.folder)
        return time.monotonic() - started

    def throttle(self, rate: int) -> None:
        """Limit reading and writing to `rate` bytes per second each; the limit goes with the device.

        cgroup version 1 has write-back done in the name of the root group, and everything else in the name of
        the group that asks: both get the limit. `measure` shows whether it holds.
        """
        if not (BLKIO / "blkio.throttle.write_bps_device").exists():
            raise DaemonFailedError("a slow disk needs the blkio controller of cgroup version 1")
        status = Path(self.device).stat()
        line = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)} {rate}\n"
        for group in {BLKIO, BLKIO / own_blkio_group()}:
            for direction in ("read", "write"):
                (group / f"blkio.throttle.{direction}_bps_device").write_text(line)

    def measure(self, size: int = 512 << 20) -> float:
        """Bytes per second of a file that is written through the page cache and synced."""
        file = self.folder / "measure"
        piece = os.urandom(1 << 20)
        started = time.monotonic()
        with file.open("wb", buffering=0) as target:
            for _ in range(size >> 20):
                target.write(piece)
            os.fsync(target.fileno())
        seconds = time.monotonic() - started
        file.unlink()
        return size / seconds


def own_blkio_group() -> str:
    """The path of this process's group in the blkio hierarchy, without the leading slash."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "blkio" in controllers.split(","):
            return path.lstrip("/")
    return ""


def run_sync(folder: Path) -> None:
    """Syncfs of the file system of `folder`; as long as it takes."""
    subprocess.run(["/usr/bin/sync", "--file-system", folder], check=True)  # noqa: S603


@contextmanager
def fresh_disk(rate: int = 0) -> Iterator[Disk]:
    """A new file system; `rate` limits it to so many bytes per second, 0 does not."""
    home = cache() / "disks"
    home.mkdir(parents=True, exist_ok=True)
    sweep(home)
    if shutil.disk_usage(home).free < NEEDED:
        raise DaemonFailedError(f"less than {NEEDED // GIB} GiB free in {home}")
    # Named after its owner, so that `sweep` can tell what was left behind.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=home))
    try:
        image, mountpoint = folder / "image", folder / "fs"
        mountpoint.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", str(image))
        device = _output("losetup", "--find", "--show", "--direct-io=on", str(image))
        run("mount", device, str(mountpoint))
        disk = Disk(mountpoint, device)
        if rate:
            disk.throttle(rate)
        yield disk
    finally:
        remove(folder)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()  # noqa: S603


def remove(folder: Path) -> None:
    """Unmount, free the loop device (limits that it had are for its successor to see: lifted) and delete."""
    mountpoint, image = folder / "fs", folder / "image"
    if os.path.ismount(mountpoint):
        _unmount(mountpoint)
    for device in _output("losetup", "--noheadings", "--output", "NAME", "--associated", str(image)).split():
        with contextlib.suppress(DaemonFailedError, OSError):
            Disk(mountpoint, device).throttle(0)
        run("losetup", "--detach", device)
    shutil.rmtree(folder)
    # Freeing its blocks is work of the real disk, and must not fall into the next run.
    run_sync(folder.parent)


def _unmount(mountpoint: Path) -> None:
    """What containerd mounted below it first; as long as the write-back takes."""
    points = [Path(line.split(" ")[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if p.is_relative_to(mountpoint)), reverse=True):
        subprocess.run(["/usr/bin/umount", point], check=True)  # noqa: S603


def sweep(home: Path) -> None:
    """Remove what runs left behind whose process is gone."""
    for folder in home.glob(f"{PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(PREFIX).partition("-")[0]).exists():
            remove(folder)
