"""A slow link before the registry, by the test bed's proxy: bytes per second in all, and a delay per request."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.registry import CHECKOUT, Registry, free_port, wait_for
from tests.testbed.daemon import spawn
from tests.testbed.errors import ClusterError
from tests.testbed.proxy_client import ProxyClient

INTERVAL = 0.1
"""Seconds between two looks at the proxy's account."""


@dataclass(frozen=True, slots=True)
class LinkUse:
    """How a pull used the link. Seconds are from exec of the pull command."""

    rate: float
    size: int
    """Bytes of blobs that were delivered."""
    first_byte: float
    last_byte: float

    @property
    def share(self) -> float:
        """Of what the link could carry between the first and the last byte."""
        return self.size / self.rate / max(self.last_byte - self.first_byte, 1e-9)

    @property
    def link_seconds(self) -> float:
        """What the bytes take at least."""
        return self.size / self.rate

    def as_json(self) -> dict[str, float]:
        """With what follows from it."""
        return {**asdict(self), "share": self.share, "link_seconds": self.link_seconds}


@dataclass(frozen=True, slots=True)
class Link:
    """A running proxy; `host` takes the registry's place in references."""

    host: str
    client: ProxyClient
    rate: float
    delay: float


@contextmanager
def slow_link(registry: Registry, folder: Path, rate: float, delay: float) -> Iterator[Link]:
    """A proxy of `rate` bytes per second in all and `delay` seconds per request, counted with the registry."""
    port, control, log = free_port(), free_port(), folder / "proxy.log"
    command = [sys.executable, "-m", "tests.testbed.proxy", f"--listen=127.0.0.1:{port}"]
    command += [f"--control=127.0.0.1:{control}", f"--upstream={registry.host}", f"--nodes={folder}/none"]
    process = spawn(registry.group.entering(["env", f"PYTHONPATH={CHECKOUT}", *command]), log)
    try:
        wait_for(f"http://127.0.0.1:{control}/state", log)
        client = ProxyClient(f"http://127.0.0.1:{control}")
        client.pace(rate=rate, delay=delay)
        yield Link(f"127.0.0.1:{port}", client, rate, delay)
    finally:
        process.kill()
        process.wait(10)


class LinkWatch:
    """Notes when the first and the last byte of blobs went over the link, for the time of a `with` block."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._started = 0.0
        self._samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link-watch")

    def __enter__(self) -> Self:
        """Count from here."""
        self._link.client.forget()
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()

    def use(self) -> LinkUse:
        """What was seen."""
        return use_of(self._samples, self._link.rate)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(INTERVAL)
            try:
                blobs = self._link.client.state()["blobs"]
            except ClusterError:
                continue
            size = sum(int(one["bytes"]) for node in blobs.values() for one in node.values())
            self._samples.append((time.monotonic() - self._started, size))


def use_of(samples: list[tuple[float, int]], rate: float) -> LinkUse:
    """From samples (seconds, bytes so far): the sample before the first byte to the one that first had all."""
    size = samples[-1][1] if samples else 0
    first = max((second for second, count in samples if count == 0), default=0.0)
    last = next((second for second, count in samples if count == size), 0.0)
    return LinkUse(rate, size, first, last)
