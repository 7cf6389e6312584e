"""What is said of a socket that is not containerd's, and how a daemon that dies is told and outlived."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.errors import (
    NotContainerd,
    RuntimeFault,
    SocketMissing,
    TimedOut,
    Unavailable,
)
from tests.testbed.daemon import ContainerdDaemon

MIB = 1 << 20


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


async def refused(address: str | Path) -> RuntimeFault:
    """The fault of an attempt to connect."""
    with pytest.raises(RuntimeFault) as raised:
        async with connect(str(address), timeout=2):
            pass
    return raised.value


async def test_missing_socket(socket_path: Path) -> None:
    fault = await refused(socket_path)
    assert isinstance(fault, SocketMissing)
    assert str(socket_path) in str(fault)


async def test_ordinary_file() -> None:
    assert isinstance(await refused(f"unix://{__file__}"), NotContainerd)


async def test_socket_that_nobody_listens_on(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(socket_path))
        fault = await refused(socket_path)
    assert isinstance(fault, Unavailable)
    assert "not running" in str(fault)


@pytest.mark.parametrize(
    ("greeting", "fault"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", NotContainerd),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotContainerd),
        # A daemon that is just being stopped looks the same: worth another try.
        (b"", Unavailable),
    ],
    ids=["http", "ssh", "hangs-up"],
)
async def test_server_of_another_protocol(
    socket_path: Path, greeting: bytes, fault: type[RuntimeFault]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_unix_server(answer, socket_path):
        assert type(await refused(socket_path)) is fault


async def test_grpc_server_of_something_else(socket_path: Path) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        assert isinstance(await refused(socket_path), NotContainerd)
    finally:
        await server.stop(None)


@pytest.fixture
async def silent(socket_path: Path) -> AsyncIterator[Path]:
    """A server that accepts and says nothing."""
    ended = asyncio.Event()

    async def wait(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    async with await asyncio.start_unix_server(wait, socket_path):
        yield socket_path
        ended.set()


async def test_silent_server(silent: Path) -> None:
    fault = await refused(silent)
    assert isinstance(fault, TimedOut | NotContainerd)


def test_user_without_permission_is_told_so(daemon: ContainerdDaemon) -> None:
    script = textwrap.dedent("""
        import asyncio, os, sys
        from imageprepull.runtime.connection import connect
        from imageprepull.runtime.errors import RuntimeFault

        os.setgroups([]); os.setgid(65534); os.setuid(65534)

        async def main():
            try:
                async with connect(sys.argv[1]):
                    print("connected")
            except RuntimeFault as fault:
                print(type(fault).__name__, fault)

        asyncio.run(main())
    """)
    assert daemon.socket.parent.parent.stat().st_mode & 0o005, "the socket itself is to say no"
    done = subprocess.run(
        [sys.executable, "-c", script, daemon.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("PermissionDenied"), done.stderr


@pytest.fixture
def mortal(daemon: ContainerdDaemon) -> Iterator[ContainerdDaemon]:
    """The session's daemon, which a test may kill: it runs again afterwards."""
    yield daemon
    if daemon.process is None:
        daemon.start()


async def outlive(containerd: Containerd) -> None:
    """Call until the daemon answers again, which must be soon."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Unavailable):
                await containerd.leases.list()
                return
            await asyncio.sleep(0.05)


async def test_killed_daemon_is_unavailable_and_found_again(
    mortal: ContainerdDaemon, containerd: Containerd
) -> None:
    mortal.kill()
    with pytest.raises(Unavailable):
        await containerd.leases.list()
    mortal.start()
    await outlive(containerd)
    assert await containerd.ask_version() == containerd.version


async def test_daemon_killed_during_an_ingest(
    mortal: ContainerdDaemon, leased: Containerd, tmp_path: Path
) -> None:
    data = os.urandom(64 * MIB)
    spool = tmp_path / "spool"
    spool.write_bytes(data)
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar", sha256_digest(data), len(data))
    under_way = asyncio.Event()

    def on_bytes(offset: int) -> None:
        if offset:
            under_way.set()

    ingest = asyncio.create_task(leased.content.ingest("layer-killed", blob, spool, {}, on_bytes))
    await under_way.wait()
    mortal.kill()
    with pytest.raises(Unavailable):
        await ingest
    mortal.start()
    await outlive(leased)
    await leased.content.ingest("layer-killed", blob, spool, {})
    found = await leased.content.info(blob.digest)
    assert found is not None
    assert found.size == len(data)


async def test_events_end_with_the_daemon(mortal: ContainerdDaemon, containerd: Containerd) -> None:
    async def listen() -> None:
        async for _ in containerd.events.subscribe():
            pass

    listening = asyncio.create_task(listen())
    await containerd.leases.list()
    mortal.kill()
    with pytest.raises(Unavailable):
        await listening
    mortal.start()
    await outlive(containerd)


async def test_frozen_daemon_runs_into_the_deadline(mortal: ContainerdDaemon, leased: Containerd) -> None:
    mortal.freeze()
    try:
        with pytest.raises(TimedOut):
            await leased.ask_version(deadline=0.3)
        with pytest.raises(TimedOut):
            await leased.content.put(
                "layer-frozen",
                Descriptor("application/vnd.oci.image.layer.v1.tar", sha256_digest(b"abc"), 3),
                b"abc",
                {},
                deadline=0.3,
            )
    finally:
        mortal.thaw()
    await outlive(leased)
    await leased.content.abort("layer-frozen")


async def test_cancelled_await_cancels_the_call(mortal: ContainerdDaemon, containerd: Containerd) -> None:
    mortal.freeze()
    try:
        call = asyncio.create_task(containerd.leases.list())
        await asyncio.sleep(0.1)  # the call is on its way
        call.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await call
    finally:
        mortal.thaw()
