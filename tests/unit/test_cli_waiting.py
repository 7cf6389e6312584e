"""For how long `wait`, `retry` and `repair` wait, and what is left when they stop before the answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from imageprepull.cli import interrupts, kubeconfig, repair, retry, wait
from imageprepull.cli.kubeconfig import Target
from imageprepull.cli.waiting import INTERRUPTED, IS_IT_RUNNING, TIMED_OUT
from imageprepull.controller import repairs, retries
from imageprepull.controller.retries import RetryOrder
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import Kind
from tests.unit.fake_api_server import FakeApiServer, serve

ENTRY = {"reference": "a", "digest": "sha256:" + "a" * 64}
RETRY_STANDS = (
    f"the operator has not answered yet: {IS_IT_RUNNING}; the order stands, "
    "and status.retry of default/web tells what comes of it\n"
)
REPAIR_STANDS = (
    f"the operator has not passed it on yet: {IS_IT_RUNNING}; the order stands, "
    "and the operator takes it away when the agent has answered\n"
)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApiServer]:
    """An object and a node that nobody looks after."""
    async with serve() as server:
        await server.put("web", namespace="default", spec={"images": [{"image": "a"}]})
        await server.put("n1", spec={"images": [ENTRY]})
        monkeypatch.setattr(kubeconfig, "target", lambda _: Target(server.access(), "default"))
        yield server


def standing(server: FakeApiServer, *key: str) -> dict[str, str]:
    found: dict[str, str] = server.objects[key[0], key[1]]["metadata"].get("annotations", {})
    return found


@pytest.mark.parametrize(("command", "name"), [(wait, "web"), (retry, "web"), (repair, "n1")])
async def test_a_time_that_is_given_is_kept(
    command: ModuleType, name: str, server: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args([name, "--timeout=0.5"])
    async with asyncio.timeout(30):
        assert await asyncio.to_thread(command.run, arguments) == TIMED_OUT
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .* after 0\.5 s: .*\n", err)


async def interrupted(server: FakeApiServer, work: Coroutine[Any, Any, int]) -> None:
    """Ask, and end while it follows what comes of it, as `asyncio.run` does it at Ctrl-C."""
    task = asyncio.create_task(work)
    await server.until_asked("WATCH", 1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def runs_out(api: ApiClient, kind: Kind, name: str, namespace: str = "") -> AsyncIterator[Any]:
    """Time is over when the first look has been answered."""
    yield await api.get(kind, name, namespace)
    raise TimeoutError


async def test_a_retry_that_nobody_waits_for_any_more_stands(
    server: FakeApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(server.access(), "default")
    await interrupted(server, retry.retry(target, "web", RetryOrder("n1"), 0))
    assert standing(server, "default", "web") == {retries.ANNOTATION: "n1"}
    assert capsys.readouterr().err == f"interrupted: {RETRY_STANDS}"
    monkeypatch.setattr(retry, "changes", runs_out)
    assert await retry.retry(target, "web", RetryOrder("n2"), 30) == TIMED_OUT
    assert standing(server, "default", "web") == {retries.ANNOTATION: "n2"}
    assert capsys.readouterr().err == f"error: not done after 30 s: {RETRY_STANDS}"


async def test_a_repair_that_nobody_waits_for_any_more_stands(
    server: FakeApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(server.access(), "default")
    await interrupted(server, repair.repair(target, "n1", "", 0))
    assert list(standing(server, "", "n1")) == [repairs.ANNOTATION]
    assert capsys.readouterr().err == f"interrupted: {REPAIR_STANDS}"
    monkeypatch.setattr(repair, "changes", runs_out)
    assert await repair.repair(target, "n1", "", 30) == TIMED_OUT
    assert list(standing(server, "", "n1")) == [repairs.ANNOTATION]
    assert capsys.readouterr().err == f"error: not done after 30 s: {REPAIR_STANDS}"


async def test_ctrl_c_has_its_own_exit_code_and_says_what_stands(
    server: FakeApiServer, tmp_path: Path
) -> None:
    configuration = {
        "clusters": [{"name": "fake", "cluster": {"server": server.url}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
        "current-context": "fake",
    }
    (tmp_path / "config").write_text(json.dumps(configuration))
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from imageprepull.cli.kubectl import main; main()",
        "retry",
        "web",
        f"--kubeconfig={tmp_path}/config",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await server.until_asked("WATCH", 1)
        command.send_signal(signal.SIGINT)
        _, said = await command.communicate()
    finally:
        if command.returncode is None:
            command.kill()
            await command.wait()
    assert (command.returncode, said.decode()) == (INTERRUPTED, f"interrupted: {RETRY_STANDS}")


def test_ctrl_c_wakes_a_command_for_which_nothing_else_happens() -> None:
    """Handled by another thread, it is what one is that comes just before the loop waits: noted, and no wait ends."""

    def strike() -> None:
        time.sleep(0.2)  # an earlier one would be heard in any case: that fails nothing, and proves nothing.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    async def waits() -> None:
        threading.Thread(target=strike).start()
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupts.run(waits())
    assert time.monotonic() - began < 50
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_the_last_word_takes_the_order_away(server: FakeApiServer) -> None:
    work = asyncio.create_task(retry.retry(Target(server.access(), "default"), "web", RetryOrder("n1"), 0))
    await server.until_asked("WATCH", 1)
    assert standing(server, "default", "web") == {retries.ANNOTATION: "n1"}
    spec = {"images": [{"image": "a"}]}
    answer = {"nonce": "n1", "ready": 3}
    await server.put("web", namespace="default", spec=spec, status={"retry": answer})
    assert await work == 0
    assert standing(server, "default", "web") == {}


async def test_an_api_server_that_does_not_answer_was_asked_for_nothing(
    server: FakeApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = asyncio.Event()

    async def hang(*_: Any) -> None:
        await hangs.wait()

    monkeypatch.setattr(server, "tell", hang)  # So no PATCH is answered.
    target = Target(server.access(), "default")
    assert await retry.retry(target, "web", RetryOrder("n1"), 0.3) == TIMED_OUT
    assert await repair.repair(target, "n1", "", 0.3) == TIMED_OUT
    said = "error: not done after 0.3 s: the API server has not answered yet\n"
    assert capsys.readouterr().err == said * 2
