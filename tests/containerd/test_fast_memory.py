"""A large image in a small cgroup: the memory of the pull stays flat, and its page cache neither kills nor stalls it.

Run on cgroup version 1, whose limit counts the page cache too; version 2 was not tried.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import tarfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import zstandard

from imageprepull.oci.descriptor import OCI_LAYER
from imageprepull.oci.digests import sha256_digest
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import leftovers, wipe
from tests.containerd.pull_bench import fake_serve, layer, serve
from tests.containerd.test_pull_cli import COMMAND
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import Blob, BuiltLayer, Entry, LayerSpec, build_image, build_layer

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 256 << 20
LAYERS, FILES, FILE = 3, 6, 24 << 20
DIRECTORIES = 20_000
MANY_CORES = (
    COMMAND[0],
    "-c",
    f"from imageprepull.pulling import puller; puller._cores = lambda: 64; {COMMAND[2]}",
    COMMAND[3],
)
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
    try:
        yield folder
    finally:
        await wipe(containerd)
        await emptied(folder)
        folder.rmdir()


async def emptied(group: Path) -> None:
    """Workers end with the pull that started them; a killed one's are killed by the kernel, which takes its time."""
    async with asyncio.timeout(60):
        while (group / "cgroup.procs").read_text():  # noqa: ASYNC110 - the kernel tells nobody.
            await asyncio.sleep(0.01)


def statistic(group: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


async def peak_of_pull(group: Path, command: Sequence[str], daemon: ContainerdDaemon, reference: str) -> int:
    """Bytes of anonymous memory of all processes of a pull, at most. However the test ends, the pull does."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--"),
        "/bin/sh",
        "-c",
        'echo $$ > "$0/cgroup.procs" && exec "$@"',
        str(group),
        *command,
        *("--address", daemon.address, "--path", "fast", reference),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    peak = 0
    ended = asyncio.create_task(process.communicate())
    try:
        while not ended.done():
            peak = max(peak, statistic(group, "total_rss"))
            await asyncio.wait([ended], timeout=0.005)
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait([ended])
    _, errors = ended.result()
    assert process.returncode == 0, errors.decode()
    return peak


async def test_a_pull_is_over_when_its_test_is(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry, group: Path
) -> None:
    """One that went on would keep the daemon's disk busy, and later runs could not remove it."""
    image = build_image([layer("over", 400_000)])
    blob = image.layers[0].blob.digest
    fake.faults[blob] = [Fault(hold_after=100_000)]
    pulling = asyncio.create_task(peak_of_pull(group, COMMAND, daemon, fake_serve(fake, image)))
    async with asyncio.timeout(60):
        while not fake.gets(blob):  # noqa: ASYNC110 - the registry tells nobody.
            await asyncio.sleep(0.01)
    pulling.cancel()
    await asyncio.wait([pulling])
    await emptied(group)


async def test_memory_stays_flat_in_a_small_cgroup(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, group: Path
) -> None:
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    noise = random.Random(4)
    image = build_image(
        [
            LayerSpec({f"l{number}/f{file}": noise.randbytes(FILE) for file in range(FILES)}, level=0)
            for number in range(LAYERS)
        ]
    )
    peak = await peak_of_pull(group, COMMAND, daemon, serve(registry, image, "memory/flat"))
    oom_kills = re.search(r"oom_kill (\d+)", (group / "memory.oom_control").read_text())
    assert oom_kills
    assert int(oom_kills[1]) == 0
    met = int((group / "memory.failcnt").read_text())
    assert met > 0, "the limit was never met: less went through than it allows"
    assert 0 < peak < LIMIT - (32 << 20), f"{peak >> 20} MiB of anonymous memory"
    left = await leftovers(containerd)
    assert (left.leases, left.active_snapshots) == ([], [])


def wide_layer(number: int) -> BuiltLayer:
    """The widest window that the fast path unpacks, filled."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(f"zeros{number}")
        entry.size = 40 << 20
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=25)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(packed.getvalue()) + compressor.flush()
    return BuiltLayer(
        Blob(f"{OCI_LAYER}+zstd", sha256_digest(blob), len(blob), blob), sha256_digest(packed.getvalue())
    )


async def test_memory_is_bounded_where_cores_and_windows_are_many(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, group: Path
) -> None:
    """As many workers as a large node has, each of whose layers asks for the widest window."""
    image = build_image([wide_layer(number) for number in range(8)])
    peak = await peak_of_pull(group, MANY_CORES, daemon, serve(registry, image, "memory/wide"))
    assert 0 < peak < LIMIT, f"{peak >> 20} MiB of anonymous memory"


def layer_of_directories() -> BuiltLayer:
    """Directories with nearly the longest names that are taken, each of which is remembered to the end."""
    deep = "/".join(["d" * 250] * 7)
    listed = Entry(kind=tarfile.DIRTYPE, mode=0o755)
    return build_layer(LayerSpec({f"{deep}/{number}": listed for number in range(DIRECTORIES)}, level=1))


async def test_memory_is_bounded_where_cores_and_directories_are_many(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, group: Path
) -> None:
    image = build_image([layer_of_directories()] * 6)
    peak = await peak_of_pull(group, MANY_CORES, daemon, serve(registry, image, "memory/directories"))
    assert 0 < peak < LIMIT, f"{peak >> 20} MiB of anonymous memory"
