"""Fills the binary cache: `python -m tests.testbed.build [component…]`.

One `go build` per component, one after the other (each uses all cores), into a folder beside its final name that is
renamed when it is complete. A lock keeps two processes from building at once.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.testbed.binaries import COMPONENTS, Component, cache_root, go_binary
from tests.testbed.errors import ClusterError


def missing(names: Iterable[str] = ()) -> list[Component]:
    """The components that the cache lacks, of these or of all."""
    chosen = [COMPONENTS[name] for name in names] or list(COMPONENTS.values())
    return [
        component
        for component in chosen
        if not all((component.folder() / binary).exists() for binary in component.binaries)
    ]


def build(names: Iterable[str] = ()) -> None:
    """Build what is missing, showing what and for how long; raises ClusterError with the end of Go's output."""
    names = tuple(names)
    if not missing(names):
        return
    with _only_builder() as lock:
        todo = missing(names)  # another process may just have finished
        for number, component in enumerate(todo, 1):
            _build(component, f"[{number}/{len(todo)}]", lock)


def build_all() -> None:
    """Build every component that is missing."""
    build()


@contextlib.contextmanager
def _only_builder() -> Iterator[int]:
    """Hold the lock; yields its descriptor, for the Go process to hold it as well."""
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that builds into this cache", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for abandoned in cache_root().glob("bin/.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        yield lock.fileno()


def _build(component: Component, number: str, lock: int) -> None:
    folder = component.folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = cache_root() / f"build-{component.name}.log"
    what = f"{number} building {component.name} ({', '.join(component.binaries)})"
    staging = Path(tempfile.mkdtemp(prefix=f".{component.name}-", dir=folder.parent))
    try:
        command = [go_binary(), "build", *component.flags, "-o", f"{staging}/", *component.packages]
        environment = {**os.environ, "CGO_ENABLED": "0"}
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=component.module,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
            )
            try:
                code = _watch(process, what)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code:
            raise ClusterError(component.name, f"go build ended with {code}", log)
        for package, binary in zip(component.packages, component.binaries, strict=True):
            (staging / _go_name(package, component)).rename(staging / binary)
        staging.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], what: str) -> int:
    """One line per component: rewritten each second on a terminal, else printed at the start and the end."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    if not live:
        print(what, flush=True)
    shown = 0
    while True:
        seconds = int(time.monotonic() - started)
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if live:
                print(f"\r{what} {seconds} s", end="", flush=True)
            elif seconds >= shown + 60:
                shown = seconds
                print(f"{what}: {seconds} s so far", flush=True)
            continue
        print(("\r" if live else "") + f"{what}: {'failed after ' if code else ''}{seconds} s", flush=True)
        return code


def _go_name(package: str, component: Component) -> str:
    """How Go names the binary: the last path element that is not a major version; "." is the module itself."""
    if package == ".":
        return component.name
    parts = package.split("/")
    return parts[-2] if parts[-1].startswith("v") and parts[-1][1:].isdigit() else parts[-1]


def main() -> int:
    """Entry of `python -m tests.testbed.build`."""
    parser = argparse.ArgumentParser(prog="python -m tests.testbed.build", description=__doc__)
    parser.add_argument("component", nargs="*", help=f"of {', '.join(COMPONENTS)}; all when none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.component) - set(COMPONENTS):
        parser.error(f"no such component: {', '.join(sorted(unknown))}")
    try:
        build(arguments.component)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    for name in arguments.component or COMPONENTS:
        print(COMPONENTS[name].folder())
    return 0


if __name__ == "__main__":
    sys.exit(main())
