"""Workers: jobs, answers and ends of processes. Unconfined, so that no root is needed; see test_unpacking_confine."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageprepull.unpacking.conversation import Conversation
from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import ImplicitDirectory, InheritJob, Refused
from imageprepull.unpacking.messages import Held, Hurry, Settings
from imageprepull.unpacking.workers import WorkerDied, Workers
from tests.unit.unpacking_zygotes import ROOT, SCENARIOS, Stage, awaited, children, gone, until, zygote


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with zygote(SCENARIOS) as workers:
        yield workers


@pytest.fixture
def stage(workers: Workers, tmp_path: Path) -> Stage:
    return Stage(workers, tmp_path)


async def test_a_job_is_answered_and_its_worker_reaped(stage: Stage) -> None:
    assert await stage.ask("noop") == "done"
    assert children(stage.workers._pid) == []
    assert stage.workers.alive


async def test_many_jobs_at_once_keep_apart(workers: Workers, tmp_path: Path) -> None:
    async def one(number: int) -> object:
        (tmp_path / str(number)).mkdir()
        return await Stage(workers, tmp_path / str(number)).ask("grow", number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(60)]
    assert [task.result() for task in tasks] == [f"got {number}" for number in range(60)]


async def test_no_job_is_lost_while_the_zygote_is_busy(workers: Workers, tmp_path: Path) -> None:
    async def one(number: int) -> object:
        (tmp_path / str(number)).mkdir()
        return await Stage(workers, tmp_path / str(number)).ask("noop")

    room = workers._control.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    workers._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    os.kill(workers._pid, signal.SIGSTOP)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(40)]
            await until(lambda: workers._writable is not None)
            os.kill(workers._pid, signal.SIGCONT)
    finally:
        os.kill(workers._pid, signal.SIGCONT)
        workers._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    assert [task.result() for task in tasks] == ["done"] * 40


async def test_a_refusal_keeps_its_fields(stage: Stage) -> None:
    with pytest.raises(Refused) as caught:
        await stage.run("refuse")
    refusal = caught.value.refusal
    assert (refusal.reason, refusal.message, refusal.entry, refusal.final) == (
        "Bomb",
        "too big",
        b"a/\xff",
        True,
    )


async def test_an_error_of_the_file_system_keeps_its_number_and_path(stage: Stage) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        await stage.run("no_space")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "some/file"


async def test_a_bug_says_what_and_where(stage: Stage) -> None:
    with pytest.raises(WorkerDied, match=r"ZeroDivisionError: of all things at .*unpacking_scenarios.py:\d+"):
        await stage.run("stumble")


async def test_a_worker_that_ends_without_an_answer_says_how(stage: Stage) -> None:
    with pytest.raises(WorkerDied) as caught:
        await stage.run("exit_with", 3)
    assert caught.value.exit_code == 3
    with pytest.raises(WorkerDied, match="SIGSEGV") as caught:
        await stage.run("end_by", signal.SIGSEGV)
    assert caught.value.signal == signal.SIGSEGV


@pytest.mark.parametrize("scenario", ["babble", "shout"])
async def test_what_is_no_message_ends_the_worker(stage: Stage, scenario: str) -> None:
    with pytest.raises(WorkerDied, match="sent"):
        await stage.run(scenario)
    assert children(stage.workers._pid) == []


async def test_a_long_answer_arrives_whole(stage: Stage) -> None:
    extracted = await stage.run("imply", 50_000)
    assert len(extracted.implicit) == 50_000
    assert extracted.implicit[7] == ImplicitDirectory(b"d/7\xff", listed=False, below=True, used=True)


async def test_a_worker_follows_the_frontier(stage: Stage) -> None:
    frontier = Frontier(1000, 10)
    job = asyncio.create_task(stage.ask("follow", frontier=frontier))
    for held in (300, 700, 1000):
        await until(lambda: awaited(frontier))
        frontier.advance(held)
    assert await job == [10, 300, 700, 1000]


async def test_a_worker_at_work_is_told_to_hurry(stage: Stage) -> None:
    hurry, frontier = asyncio.Event(), Frontier(1000, 10)
    job = asyncio.create_task(stage.run("until_hurried", frontier=frontier, hurry=hurry))
    await until(lambda: stage.progress)
    hurry.set()
    for held in (300, 1000):
        await until(lambda: awaited(frontier))
        frontier.advance(held)
    assert json.loads((await job).diff_id) == [False, 10, 300, 1000]


async def test_a_worker_that_waits_for_its_download_is_told_to_hurry_and_waits_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    tell = Conversation._tell

    async def noted(self: Conversation, message: Held | Hurry) -> None:
        await tell(self, message)
        told.append(message)

    monkeypatch.setattr(Conversation, "_tell", noted)
    hurry, frontier = asyncio.Event(), Frontier(1000, 10)
    job = asyncio.create_task(stage.run("hurried_while_waiting", frontier=frontier, hurry=hurry))
    await until(lambda: awaited(frontier))
    hurry.set()
    await until(lambda: told == [Hurry()])
    frontier.advance(1000)
    assert json.loads((await job).diff_id) == [False, 10, 1000, True]


async def test_a_failed_download_ends_the_worker_and_is_raised(stage: Stage) -> None:
    frontier = Frontier(1000, 10)
    job = asyncio.create_task(stage.run("follow", frontier=frontier))
    await until(lambda: awaited(frontier))
    frontier.fail(ConnectionError("the registry is gone"))
    with pytest.raises(ConnectionError, match="the registry is gone"):
        await job
    assert children(stage.workers._pid) == []


async def test_reader_and_writer_threads_share_the_socket(stage: Stage) -> None:
    frontier = Frontier(5000)
    job = asyncio.create_task(stage.run("two_threads", 50, frontier=frontier))
    for held in range(50, 5001, 50):
        await until(lambda: awaited(frontier))
        frontier.advance(held)
    assert json.loads((await job).diff_id) == [5000]
    assert stage.progress == sorted(stage.progress)
    assert len(stage.progress) > 20


async def test_progress_is_reported_seldom(stage: Stage) -> None:
    await stage.run("report_often", 200_000)
    assert 1 <= len(stage.progress) < 100


async def test_a_cancelled_job_returns_when_its_worker_is_reaped(stage: Stage) -> None:
    job = asyncio.create_task(stage.run("hang"))
    await until(lambda: stage.progress)
    (pid,) = children(stage.workers._pid)
    job.cancel()
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert pid not in children(stage.workers._pid)
    assert await stage.ask("noop") == "done"


async def test_a_job_that_is_cancelled_at_once_leaves_nothing(stage: Stage) -> None:
    for steps in range(6):
        job = asyncio.create_task(stage.run("hang"))
        for _ in range(steps):
            await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert children(stage.workers._pid) == []


async def test_no_progress_is_a_stall_and_waiting_for_the_download_is_none(
    workers: Workers, tmp_path: Path
) -> None:
    impatient = Workers(workers._control.dup(), workers._pid, confine=False, stall=2)
    stage = Stage(impatient, tmp_path)
    frontier = Frontier(100, 10)
    job = asyncio.create_task(stage.run("follow", frontier=frontier))
    await asyncio.wait([job], timeout=3)
    assert not job.done()
    frontier.advance(100)
    await job
    with pytest.raises(WorkerDied, match="stalled"):
        await stage.run("hang")
    assert children(workers._pid) == []
    impatient._control.close()


async def test_inherit_gets_the_lower_directories_in_order(workers: Workers, tmp_path: Path) -> None:
    lowers = []
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        lowers.append(os.open(tmp_path / str(number), os.O_RDONLY | os.O_DIRECTORY))
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    implicit = (ImplicitDirectory(b"a", listed=False, below=False, used=True),)
    await workers.inherit(InheritJob(implicit=implicit, lowers=300), root=root, lowers=lowers)
    seen = json.loads((tmp_path / "seen").read_text(encoding="ascii"))
    assert seen["jobs"] == 1
    assert seen["inodes"] == [os.fstat(lower).st_ino for lower in lowers]
    for descriptor in [root, *lowers]:
        os.close(descriptor)


async def test_a_worker_has_its_own_descriptors_only(stage: Stage) -> None:
    found = await stage.ask("descriptors")
    assert isinstance(found, list)
    assert found[:3] == ["/dev/null"] * 3
    assert len([name for name in found if name.startswith("socket:")]) == 1
    assert len([name for name in found if not name.startswith(("socket:", "/dev/null", "/proc"))]) == 2


async def test_politeness_is_asked_for_per_job(stage: Stage) -> None:
    assert await stage.ask("niceness") == os.nice(0)
    assert await stage.ask("niceness", nice=7) == min(19, os.nice(0) + 7)


async def test_a_worker_starts_small(stage: Stage) -> None:
    kilobytes = await stage.ask("private_memory")
    assert isinstance(kilobytes, int)
    assert kilobytes < 8 << 10


async def test_a_worker_imports_nothing(stage: Stage) -> None:
    assert "worker can import nothing" in str(await stage.ask("late_import", str(stage.root)))


async def test_a_function_that_is_not_there_is_found_by_the_probe(tmp_path: Path) -> None:
    with zygote(Settings(confine=False, extract="imageprepull.unpacking.nowhere:extract")) as workers:
        assert "nowhere" in (await workers.probe() or "")
        assert "nowhere" in (workers.why_not or "")
        with pytest.raises(WorkerDied, match="nowhere"):
            await Stage(workers, tmp_path).run("noop")


async def test_the_death_of_the_zygote_ends_every_job_and_is_not_mended(tmp_path: Path) -> None:
    with zygote(SCENARIOS) as workers:
        stage = Stage(workers, tmp_path)
        job = asyncio.create_task(stage.run("hang"))
        await until(lambda: stage.progress)
        (pid,) = children(workers._pid)
        os.kill(workers._pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="parent process died"):
            await job
        await until(lambda: gone(pid))
        assert not workers.alive
        with pytest.raises(WorkerDied, match="parent process died"):
            await stage.run("noop")
        assert await workers.probe() == "the workers' parent process died"


async def test_close_ends_the_zygote_and_what_works_still(tmp_path: Path) -> None:
    with zygote(SCENARIOS) as workers:
        stage = Stage(workers, tmp_path)
        job = asyncio.create_task(stage.run("hang"))
        await until(lambda: stage.progress)
        (pid,) = children(workers._pid)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await workers.close()
        assert gone(pid)
        assert not workers.alive


def test_a_process_with_threads_is_refused() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="too late"):
            Workers.start()
    finally:
        stop.set()
        thread.join()


_AGENT = """
import asyncio, os, sys
from pathlib import Path
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers
workers = Workers.start(confine=False, extract=sys.argv[1], inherit=sys.argv[2])
imported = "imageprepull.unpacking.zygote" in sys.modules
from tests.unit.unpacking_zygotes import Stage, children

async def main():
    stage = Stage(workers, Path(sys.argv[3]))
    assert await workers.probe() is None
    assert await stage.ask("noop") == "done"
    job = asyncio.create_task(stage.run("hang"))
    while not stage.progress:
        await asyncio.sleep(0.01)
    print(imported, workers._pid, *children(workers._pid), flush=True)
    await job

asyncio.run(main())
"""


def test_the_death_of_the_agent_takes_zygote_and_workers_along(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _AGENT, SCENARIOS.extract, SCENARIOS.inherit, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    imported, *pids = process.stdout.readline().split()
    assert imported == "False", "the zygote's imports are not the caller's"
    assert len(pids) == 2
    assert not any(gone(int(pid)) for pid in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    asyncio.run(until(lambda: all(gone(int(pid)) for pid in pids)))


async def test_a_frontier_lets_pass_what_is_there() -> None:
    frontier = Frontier(100, 10)
    assert await frontier.beyond(9) == 10
    waiting = [asyncio.create_task(frontier.beyond(10)) for _ in range(3)]
    await until(lambda: awaited(frontier))
    frontier.advance(10)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    frontier.advance(60)
    assert await asyncio.gather(*waiting) == [60, 60, 60]
    frontier.advance(100)
    assert await frontier.beyond(100) == 100
    assert frontier.complete
    assert repr(frontier) == "<Frontier 100/100>"


async def test_a_frontier_fails_for_all_and_for_good() -> None:
    frontier = Frontier(100)
    waiting = asyncio.create_task(frontier.beyond(0))
    await until(lambda: awaited(frontier))
    frontier.fail(ConnectionError("first"))
    frontier.fail(ConnectionError("second"))
    with pytest.raises(ConnectionError, match="first"):
        await waiting
    with pytest.raises(ConnectionError, match="first"):
        await frontier.beyond(0)


@pytest.mark.parametrize("held", [9, 101])
def test_a_frontier_never_goes_back_or_too_far(held: int) -> None:
    frontier = Frontier(100, 10)
    with pytest.raises(ValueError, match="cannot move"):
        frontier.advance(held)
