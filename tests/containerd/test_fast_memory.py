"""A large image in a small cgroup: the memory of the pull stays flat, and its page cache neither kills nor stalls it.

Run on cgroup version 1, whose limit counts the page cache too; version 2 was not tried.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import leftovers, wipe
from tests.containerd.pull_bench import serve
from tests.containerd.test_pull_cli import COMMAND
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import LayerSpec, build_image

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 256 << 20
LAYERS, FILES, FILE = 3, 6, 24 << 20
pytestmark = [
    pytest.mark.skipif(
        not (MEMORY / "memory.limit_in_bytes").exists(), reason="needs the memory controller of cgroup v1"
    ),
    pytest.mark.timeout(180),
]


@pytest.fixture
async def group(containerd: Containerd) -> AsyncIterator[Path]:
    folder = MEMORY / f"imageprepull-test-{os.getpid()}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    yield folder
    folder.rmdir()
    await wipe(containerd)


def statistic(group: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


async def test_memory_stays_flat_in_a_small_cgroup(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, group: Path
) -> None:
    noise = random.Random(4)
    image = build_image(
        [
            LayerSpec({f"l{number}/f{file}": noise.randbytes(FILE) for file in range(FILES)}, level=0)
            for number in range(LAYERS)
        ]
    )
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        'echo $$ > "$0/cgroup.procs" && exec "$@"',
        str(group),
        *COMMAND,
        *("--address", daemon.address, "--path", "fast", str(serve(registry, image, "memory/flat"))),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    peak = 0
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        peak = max(peak, statistic(group, "total_rss"))
        await asyncio.wait([ended], timeout=0.05)
    _, errors = await ended
    assert process.returncode == 0, errors.decode()
    oom_kills = re.search(r"oom_kill (\d+)", (group / "memory.oom_control").read_text())
    assert oom_kills
    assert int(oom_kills[1]) == 0
    met = int((group / "memory.failcnt").read_text())
    assert met > 0, "the limit was never met: less went through than it allows"
    assert 0 < peak < LIMIT - (32 << 20), f"{peak >> 20} MiB of anonymous memory"
    left = await leftovers(containerd)
    assert (left.leases, left.active_snapshots) == ([], [])
