"""The victim: the agent without an API server, as a process that does to itself what it is told.

Lock, runtime, sweep, reconciler, workers and pull are the product's own; only the NodePrepull is replaced by one image
on the command line. It tells each step on standard output, one line each, so that its parent knows how far it was:

    started | step NAME SUBJECT | fault NUMBER VICTIM STEP | spared NUMBER VICTIM STEP | failed REASON MESSAGE |
    given-up | idle
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprepull.cli.start import raise_file_limit, start_workers
from tests.faults.faults import STARTED, SWEPT, WITHOUT_DAEMON, Fault, Victim

if TYPE_CHECKING:
    from imageprepull.agent.settings import AgentSettings
    from imageprepull.unpacking.workers import Workers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="the daemon's")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--boot-id-file", type=Path, required=True)
    parser.add_argument("--sync", default="background")
    parser.add_argument("--extraction", default="auto")
    parser.add_argument("--polite", action="store_true")
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--fault", action="append", default=[], type=Fault.parse)
    parser.add_argument("--defect", default="", help="some, with commas in between")
    return parser.parse_args()


def say(*words: object) -> None:
    """One write, so that a line is whole or not there, whatever kills us."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Executioner:
    """Follows the steps and does what is due. Called from the event loop, and by a timer's thread."""

    def __init__(self, faults: list[Fault], daemon_pid: Path, zygote: int) -> None:
        self._faults = faults
        self._daemon_pid = daemon_pid
        self._zygote = zygote
        self._number = 0
        self._seen: dict[str, int] = {}
        self._last = STARTED
        self._turn = threading.Lock()
        self._torn = False
        self.deaf = False
        """The daemon was killed: what is known of it says nothing of the next one, until we are told of it."""

    def begin(self) -> None:
        """The pull begins: times count from now."""
        self._arm()

    def reached(self, step: str, subject: str = "") -> None:
        say("step", step, subject)
        self._last = step
        self._seen[step] = self._seen.get(step, 0) + 1
        fault = self._due()
        if (
            fault is not None
            and fault.step == step
            and fault.occurrence <= self._seen[step]
            and self._may(fault)
        ):
            if fault.delay:
                self._later(fault)
            else:
                self._carry_out(fault)

    def heard(self) -> None:
        """There is a daemon again."""
        self.deaf = self._torn = False

    def disarm(self) -> bool:
        """The pull is over: nothing happens any more, so that the parent can look. False when something just did."""
        with self._turn:
            if not self.deaf:
                self._faults.clear()
            return not self.deaf

    def _due(self) -> Fault | None:
        return self._faults[self._number] if self._number < len(self._faults) else None

    def _arm(self) -> None:
        fault = self._due()
        if fault is not None and not fault.step:
            self._later(fault)

    def _may(self, fault: Fault) -> bool:
        """The daemon cannot be hit while it is down; while it is waited for its death, nobody can."""
        return not self.deaf or (fault.victim in WITHOUT_DAEMON and not self._torn)

    def _later(self, fault: Fault) -> None:
        timer = threading.Timer(max(fault.delay, 0.01), self._carry_out, [fault])
        timer.daemon = True
        timer.start()

    def _carry_out(self, fault: Fault) -> None:
        with self._turn:
            if self._due() is not fault:
                return
            if not self._may(fault):
                self._later(fault)
                return
            victim = self._worker() if fault.victim is Victim.WORKER else 0
            if fault.victim is Victim.WORKER and not victim:
                # None is at work just now; the next step may have one.
                self._faults[self._number] = Fault(fault.victim, delay=0.01)
                self._arm()
                return
            dead = fault.victim is Victim.ZYGOTE and not _lives(self._zygote)
            if fault.victim is Victim.DAEMON:
                # Before the parent hears of it: it starts the next one, which this thread must not hit when it gets on.
                self._strike(fault.victim, victim)
            say("spared" if dead else "fault", self._number, fault.victim, self._last)
            self._number += 1
            self._seen.clear()
            if not dead and fault.victim is not Victim.DAEMON:
                self._strike(fault.victim, victim)
            self._arm()

    def _strike(self, victim: Victim, worker: int) -> None:
        match victim:
            case Victim.AGENT:
                os.kill(os.getpid(), signal.SIGKILL)
            case Victim.DAEMON:
                self.deaf = True
                os.kill(int(self._daemon_pid.read_text()), signal.SIGKILL)
            case Victim.WORKER:
                os.kill(worker, signal.SIGKILL)
            case Victim.ZYGOTE:
                os.kill(self._zygote, signal.SIGKILL)
            case Victim.LEASE | Victim.GAP | Victim.PAUSE | Victim.TORN:
                # The parent does it, and lets us go on.
                self._torn = victim is Victim.TORN
                self.deaf = self.deaf or self._torn
                os.kill(os.getpid(), signal.SIGSTOP)
            case Victim.CONNECTION:
                pass  # the parent's

    def _worker(self) -> int:
        children = Path(f"/proc/{self._zygote}/task/{self._zygote}/children")
        try:
            pids = [int(pid) for pid in children.read_text().split()]
        except OSError:
            return 0
        return next((pid for pid in reversed(pids) if _lives(pid)), 0)


def _lives(pid: int) -> bool:
    """Whether there is a process that a signal could end: one that is dead already is only not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def main() -> int:
    args = arguments()
    workers, why_not = start_workers()
    if workers is None:
        sys.exit(why_not)
    raise_file_limit()
    executioner = Executioner(args.fault, args.folder / "containerd.pid", workers._pid)
    say(STARTED)
    observe(executioner)
    if args.defect:
        from tests.faults.defects import plant  # noqa: PLC0415 - after the fork, as all that follows.

        for defect in args.defect.split(","):
            plant(defect)
    asyncio.run(live(args, workers, executioner))
    return 0


def observe(executioner: Executioner) -> None:
    """Let structlog's debug events of steps pass by the executioner; all lines go to standard error."""
    import structlog  # noqa: PLC0415

    def watch(logger: Any, method: str, event: Any) -> Any:
        if event.get("event") == "step":
            executioner.reached(event["step"], event["subject"])
        return event

    structlog.configure(
        processors=[
            watch,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def settings_of(args: argparse.Namespace) -> AgentSettings:
    from imageprepull.agent.accounts import Delays  # noqa: PLC0415
    from imageprepull.agent.settings import AgentSettings  # noqa: PLC0415
    from imageprepull.kube.access import ClusterAccess  # noqa: PLC0415
    from imageprepull.pulling.settings import PullSettings  # noqa: PLC0415

    return AgentSettings(
        access=ClusterAccess("http://127.0.0.1:9"),
        node_name="victim",
        namespace="none",
        address=f"unix://{args.folder}/containerd.sock",
        hosts_dirs=(args.folder / "certs.d",),
        spool_dir=args.folder / "root/imageprepull",
        boot_id_file=args.boot_id_file,
        sync=args.sync,
        extraction=args.extraction,
        delays=Delays(ask_again=0.1, retry_base=0.1),
        pull=PullSettings(
            backoff_base=0.02,
            backoff_cap=0.2,
            attempts_without_progress=4,
            range_size=512 * 1024,
            small_blob=128 * 1024,
            write_batch=128 * 1024,
            checkpoint=256 * 1024,
            cleanup_timeout=20,
        ),
        reconnect=0.1,
        event_settle=0.1,
    )


async def live(args: argparse.Namespace, workers: Workers, executioner: Executioner) -> None:
    """As agent/main.py's `live` and loops.py, without what talks to the API server."""
    from imageprepull.agent.clock import Clock  # noqa: PLC0415
    from imageprepull.agent.losses import follow_losses  # noqa: PLC0415
    from imageprepull.agent.reconciler import Reconciler  # noqa: PLC0415
    from imageprepull.agent.runtime_start import opened_runtime, swept  # noqa: PLC0415
    from imageprepull.agent.spool_lock import locked  # noqa: PLC0415
    from imageprepull.resources.nodeprepull import DesiredImage, Retry  # noqa: PLC0415
    from imageprepull.telemetry.metrics import AgentMetrics  # noqa: PLC0415

    waits = [""]

    def note(why: str) -> None:
        if why and why != waits[-1]:
            waits.append(why)
            say("waiting", why)

    settings = settings_of(args)
    # A fault costs an attempt; how many in a row are one too many is tested elsewhere.
    retry = Retry(backoff_limit=1000, max_backoff_seconds=1)
    image = DesiredImage(
        reference=args.reference, digest=args.digest, gated=not args.polite, pin=args.pin, retry=retry
    )
    stop = asyncio.Event()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, show_tasks)
    try:
        async with (
            locked(settings.spool_dir, retry=0.05, on_wait=note),
            opened_runtime(settings, workers, note) as node,
        ):
            executioner.begin()
            await swept(node, None, note)
            await swept(node, lambda: {image.digest}, note)
            executioner.reached(SWEPT)
            async with asyncio.TaskGroup() as tasks:
                reconciler = Reconciler(
                    node,
                    tasks,
                    clock=Clock(),
                    metrics=AgentMetrics(),
                    on_change=lambda: None,
                    delays=settings.delays,
                )
                work = [
                    tasks.create_task(reconciler.run()),
                    tasks.create_task(
                        follow_losses(
                            node.subscribe,
                            reconciler.suspect_lost,
                            namespace=node.containerd.namespace,
                            settle=settings.event_settle,
                            reconnect=settings.reconnect,
                        )
                    ),
                    tasks.create_task(tell(reconciler, node, asked, executioner)),
                ]
                reconciler.take_spec([image])
                await stop.wait()
                for task in work:
                    task.cancel()
    finally:
        await workers.close()


def show_tasks() -> None:
    """What everybody waits for, into the log: of one that has said nothing for too long."""
    for task in asyncio.all_tasks():
        sys.stderr.write("\n  ".join([repr(task), *waits(task.get_coro())]) + "\n")
    sys.stderr.flush()


def waits(work: object) -> Iterator[str]:
    """Where a coroutine stands, and what it waits for, down to the innermost: asyncio shows the outermost alone."""
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        work = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None)


async def tell(reconciler: Any, node: Any, asked: asyncio.Event, executioner: Executioner) -> None:
    """Say when the image is there, and nothing is left to do; and each new failure.

    `asked`: there is another daemon than before.
    """
    told: object = None
    idle = False
    while True:
        if asked.is_set():
            asked.clear()
            executioner.heard()
            idle = False
        for view in reconciler.views.values():
            failure = view.backoff and (view.backoff.reason, view.backoff.message)
            if failure and failure != told:
                told = failure
                say("failed", view.backoff.reason, str(view.backoff.message).replace("\n", " "))
                if view.backoff.final:
                    say("given-up")
            quiet = (
                view.held is not None
                and view.held.present
                and not (reconciler.running or reconciler._suspects.keys or reconciler._orphans.images)
                and not node.puller._background
                and node.puller.extraction.known(node.runtime.snapshotter)
            )
            if quiet and not idle and executioner.disarm():
                say("idle")
                idle = True
        # It looks at the state that the agent's reporter samples in the same way.
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
