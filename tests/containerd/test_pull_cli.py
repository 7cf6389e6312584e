"""`imageprepull pull` as a user runs it: a process of its own against real daemons and a real registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER, Leftovers, leftovers
from tests.containerd.pull_bench import answering, fake_serve, layer, serve, start_daemon
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image

COMMAND = (sys.executable, "-c", "from imageprepull.cli.main import main; main()", "pull")


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


async def start(address: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **options}
    return await asyncio.create_subprocess_exec(*COMMAND, "--address", address, *arguments, **pipes)


async def run(address: str, *arguments: str, **options: Any) -> Ran:
    process = await start(address, *arguments, **options)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Ran(process.returncode or 0, (out or b"").decode(), err.decode())


@pytest.fixture
async def no_spool(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[None]:
    """The command leaves no spool folder behind; the containerd fixture sees to leases and snapshots."""
    yield
    assert daemon.named("imageprepull-spool") == []


@pytest.mark.usefixtures("no_spool")
async def test_an_image_is_pulled_and_then_found_without_a_registry(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    image = build_image([layer("cli-0"), layer("cli-1")])
    reference = serve(registry, image, "cli/twice")
    first = await run(daemon.address, "--output", "json", "--pin", reference)
    assert first.code == 0, first.err
    assert first.document["image"] == reference
    assert first.document["digest"] == image.digest
    assert first.document["bytesDownloaded"] == sum(built.blob.size for built in image.layers)
    assert first.document["secondsDone"] >= first.document["secondsReady"] > 0
    assert [found["chainID"] for found in first.document["layers"]] == image.chain_ids
    assert {found["state"] for found in first.document["layers"]} == {"Applied"}
    for record in await containerd.images.list():
        assert record.labels["io.cri-containerd.pinned"] == "pinned"
        assert "imageprepull.io/pinned" not in record.labels, "no agent may take it away"
        await containerd.images.update_labels(record.name, {"imageprepull.io/pinned": "true"})
    registry.stop()
    try:
        again = await run(daemon.address, "--output", "json", "--pin", reference)
        for record in await containerd.images.list():
            assert record.labels["io.cri-containerd.pinned"] == "pinned"
            assert "imageprepull.io/pinned" not in record.labels, "what an agent had pinned is ours now"
        by_digest = await run(
            daemon.address, "--output", "json", f"{reference.rpartition(':')[0]}@{image.digest}"
        )
        asked = await run(daemon.address, "--always", reference)
    finally:
        registry.start()
    assert (again.code, by_digest.code) == (0, 0)
    assert again.document["bytesDownloaded"] == 0
    assert {found["state"] for found in by_digest.document["layers"]} == {"Exists"}
    assert asked.code == 1, "--always does ask"


@pytest.mark.usefixtures("no_spool")
@pytest.mark.parametrize("lost", [0, 1])
async def test_an_image_whose_files_are_gone_is_pulled_again(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry, lost: int
) -> None:
    image = build_image([layer(f"cli-lost-{number}") for number in range(2)])
    reference = serve(registry, image, f"cli/lost-{lost}")
    assert (await run(daemon.address, reference)).code == 0
    root = daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}"
    folders = ChainFolders(root)
    chain = await folders.folders(containerd, SNAPSHOTTER, image.chain_ids, {})
    shutil.rmtree(chain[lost])
    ran = await run(daemon.address, "--output", "json", reference)
    assert ran.code == 0, ran.err
    assert [found["state"] for found in ran.document["layers"]] == ["Exists"] * lost + ["Applied"] * (
        2 - lost
    )
    assert await folders.broken(containerd, SNAPSHOTTER, image.chain_ids, {}) == []


@pytest.mark.usefixtures("no_spool")
async def test_of_several_images_the_good_ones_arrive(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    base = layer("several-base")
    good = [serve(registry, build_image([base, layer(n)]), f"several/{n}") for n in ("a", "b")]
    bad = f"{registry.host}/several/none:1"
    ran = await run(daemon.address, "--output", "json", good[0], bad, good[1])
    assert ran.code == 1
    assert [found["image"] for found in ran.document] == [good[0], bad, good[1]]
    assert ran.document[1]["error"]["reason"] == "NotFound"
    (line,) = ran.err.splitlines()
    assert bad in line


@pytest.mark.usefixtures("no_spool")
async def test_without_a_terminal_there_are_plain_lines(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    reference = serve(registry, build_image([layer("plain")]), "cli/plain")
    ran = await run(daemon.address, reference)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert "\x1b" not in ran.out
    lines = ran.out.splitlines()
    assert any(line.endswith("Applied") for line in lines)
    assert lines[-1].startswith(f"{reference}: sha256:")


@pytest.mark.usefixtures("no_spool")
async def test_on_a_terminal_there_are_bars(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    reference = serve(registry, build_image([layer("bars")]), "cli/bars")
    master, slave = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
        ran = await run(daemon.address, reference, stdout=slave, env=environment)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error.
            while piece := os.read(master, 65536):
                shown += piece
    finally:
        os.close(master)
    assert ran.code == 0, ran.err
    assert b"Applied" in shown
    assert "━".encode() in shown


@pytest.mark.usefixtures("no_spool")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_pull_cleans_up(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry, number: signal.Signals
) -> None:
    image = build_image([layer("int-0"), layer("int-1", 900_000)])
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=100_000)]
    process = await start(daemon.address, fake_serve(fake, image))
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"Applied" not in await process.stdout.readline():
            pass
    assert len((await leftovers(containerd)).leases) == 1
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1
    assert await leftovers(containerd) == Leftovers()


@pytest.mark.usefixtures("no_spool")
@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_daemon_killed_in_the_middle_is_one_line(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    fake: FaultyRegistry,
    registry: DockerRegistry,
    comes_back: bool,
) -> None:
    """One that is restarted at once is cleaned up; else the next call of the command does it."""
    image = build_image([layer("dies-0"), layer("dies-1", 900_000)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=100_000, release=release)]
    process = await start(daemon.address, fake_serve(fake, image))
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"Applied" not in await process.stdout.readline():
            pass
    daemon.kill()
    release.set()
    try:
        if comes_back:
            async with asyncio.timeout(60):
                while b"Failed" not in await process.stdout.readline():
                    pass
            await start_daemon(daemon)
        _, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if daemon.process is None:
            await start_daemon(daemon)
    assert process.returncode == 1
    assert len(err.decode().splitlines()) == 1, err
    await answering(containerd)
    left = await leftovers(containerd)
    assert len(left.leases) == (0 if comes_back else 1)
    other = serve(registry, build_image([layer("after")]), "cli/after")
    assert (await run(daemon.address, other)).code == 0


async def test_a_socket_that_is_not_containerd(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "other.sock")
    async with server:
        ran = await run(str(tmp_path / "other.sock"), "nginx")
    assert ran.code == 1
    (line,) = ran.err.splitlines()
    assert "NotContainerd" in line


async def test_no_permission_is_said_as_such(daemon: ContainerdDaemon) -> None:
    # A user of no rights, in the same Python: its own files may be unreadable to that user.
    script = "import os; os.setgroups([]); os.setegid(65534); os.seteuid(65534);"
    # So everything is imported first, by a call that finds no socket.
    first = "from imageprepull.cli.main import SUBCOMMANDS, dispatch, main;"
    first += "dispatch('imageprepull', SUBCOMMANDS, ['pull', '--address', '/none', 'nginx']);"
    script = f"{first} {script} main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "pull", "--address", daemon.address, "nginx"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert "ermission" in err.decode().splitlines()[-1]


@pytest.mark.usefixtures("no_spool")
async def test_layers_of_another_boot_are_removed_and_pulled_again_without_an_agent(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    base = layer("reboot-base")
    image, other = build_image([base, layer("reboot-a")]), build_image([base, layer("reboot-b")])
    reference = serve(registry, image, "cli/reboot")
    assert (await run(daemon.address, reference)).code == 0
    for chain_id in image.chain_ids:
        await containerd.snapshots.update_labels(SNAPSHOTTER, chain_id, {UNSYNCED: "another-boot"})
    on_same_base = await run(daemon.address, "--output", "json", serve(registry, other, "cli/reboot", "2"))
    assert on_same_base.code == 0, on_same_base.err
    assert [found["state"] for found in on_same_base.document["layers"]] == ["Applied"] * 2
    again = await run(daemon.address, "--output", "json", reference)
    assert again.code == 0, again.err
    assert [found["state"] for found in again.document["layers"]] == ["Exists", "Applied"]
