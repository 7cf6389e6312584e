"""A power cut: the machine's disk as it is at one moment, without what the kernel had not written to it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.faults.node import Machine
from tests.testbed.daemon import PREFIX, ContainerdDaemon, remove, run


@contextlib.contextmanager
def after_power_cut(machine: Machine) -> Iterator[Machine]:
    """The machine as it would come up after a power cut now, with a new boot; its daemon is not started.

    The block device is copied under the running machine, which does not notice, and the journal is replayed by
    mounting it.
    """
    # Named as the testbed's disks are, whose sweep removes what a killed run leaves.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    mountpoint, image = folder / "fs", folder / "disk"
    try:
        mountpoint.mkdir()
        machine.daemon.freeze()  # all of the copy is to be of one moment.
        try:
            run("cp", "--sparse=always", "--reflink=auto", str(machine.folder.with_name("disk")), str(image))
        finally:
            machine.daemon.thaw()
        run("mount", "-o", "loop,noatime,nobarrier", str(image), str(mountpoint))
        found = Machine(ContainerdDaemon(machine.daemon.version, mountpoint), machine.reference)
        found.reboot()
        try:
            yield found
        finally:
            found.daemon.stop()
    finally:
        remove(folder)


def bytes_in_layers(machine: Machine) -> int:
    """Of all files below the snapshots."""
    found = 0
    # A daemon that lives takes snapshots away meanwhile; os.walk passes over folders that are gone.
    for folder, _, names in os.walk(machine.snapshots):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = (Path(folder) / name).lstat()
                found += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return found
