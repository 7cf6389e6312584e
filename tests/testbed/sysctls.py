"""Settings of the machine that a cluster changes, and their way back.

inotify: three kubelets and three containerds need more instances than the 128 that are usual. The others are what
every kubelet sets when it starts; they are put back when the last cluster is gone.
"""

import contextlib
import json
from pathlib import Path

from tests.testbed.layout import root

MINIMUM = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 131072}
KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
SYS = Path("/proc/sys")


def prepare() -> None:
    """Note what the settings are, then raise those that are too small."""
    saved = root() / "sysctls.json"
    if not saved.exists():
        values = {name: (SYS / name).read_text().strip() for name in (*MINIMUM, *KUBELET)}
        saved.write_text(json.dumps(values))
    for name, minimum in MINIMUM.items():
        value = int((SYS / name).read_text())
        if value < minimum:
            print(f"raising {name.replace('/', '.')} from {value} to {minimum}", flush=True)
            (SYS / name).write_text(str(minimum))


def restore() -> None:
    """Put the settings back as they were before the first cluster."""
    saved = root() / "sysctls.json"
    if not saved.exists():
        return
    for name, value in json.loads(saved.read_text()).items():
        with contextlib.suppress(OSError):
            (SYS / name).write_text(value)
    saved.unlink()
