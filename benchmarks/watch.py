"""Watching a pull from outside: when the CRI answers that the image is there, and who works on it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from benchmarks.accounting import Group, Process, anonymous_bytes, role
from benchmarks.images import Image
from imageprepull.runtime.protos import cri_pb2, snapshots_pb2

INTERVAL = 0.05
"""Seconds between two questions; one costs the daemon well under a millisecond."""
PATIENCE = 10.0
"""Seconds after the command's end."""
NAMESPACE = (("containerd-namespace", "k8s.io"),)
LOOK_EVERY = 4
"""Questions per look at the processes, which costs more."""
DAEMON = "containerd"


class Watch:
    """For the time of a `with` block; afterwards `ready` is a time.monotonic(), or None if it never was.

    Ready means that the CRI has the image and the topmost snapshot is committed: containerd's own client writes the
    image's record before it unpacks.
    """

    def __init__(self, socket: Path, reference: str, image: Image, group: Group) -> None:
        self.ready: float | None = None
        self.at_once: Counter[str] = Counter()
        """The most processes of one name at a time, by name."""
        self.anonymous = {"daemon": 0, "others": 0}
        """The most memory that was not page cache, in bytes."""
        self._config = image.config
        self._cpu: dict[tuple[int, str], float] = {}
        self._group = group
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
        )
        self._image_status = self._channel.unary_unary(
            "/runtime.v1.ImageService/ImageStatus",
            request_serializer=cri_pb2.ImageStatusRequest.SerializeToString,
            response_deserializer=cri_pb2.ImageStatusResponse.FromString,
        )
        self._image = cri_pb2.ImageStatusRequest(image=cri_pb2.ImageSpec(image=reference))
        self._stat = self._channel.unary_unary(
            "/containerd.services.snapshots.v1.Snapshots/Stat",
            request_serializer=snapshots_pb2.StatSnapshotRequest.SerializeToString,
            response_deserializer=snapshots_pb2.StatSnapshotResponse.FromString,
        )
        self._snapshot = snapshots_pb2.StatSnapshotRequest(snapshotter="overlayfs", key=image.chain)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End: at once when the image is there, else after `PATIENCE`, for the CRI hears of others' pulls by events."""
        self._ended.set()
        self._thread.join()
        self._channel.close()

    def cpu_by_role(self) -> dict[str, float]:
        """CPU seconds as last seen of each process, by `role`: what it did in its last moments is missing."""
        found: dict[str, float] = {}
        for (_, name), seconds in self._cpu.items():
            found[name] = found.get(name, 0.0) + seconds
        return found

    def _run(self) -> None:
        turn, patience = 0, PATIENCE
        while self.ready is None or not self._ended.is_set():
            if self._ended.wait(INTERVAL):
                patience -= INTERVAL
                time.sleep(INTERVAL)
                if patience < 0:
                    return
            elif turn % LOOK_EVERY == 0:
                self._look()
            if self.ready is None and self._is_ready():
                self.ready = time.monotonic()
            turn += 1

    def _is_ready(self) -> bool:
        try:
            answer = self._image_status(self._image, timeout=10)
            if answer.image.id != self._config:
                return False
            self._stat(self._snapshot, timeout=10, metadata=NAMESPACE)
        except grpc.RpcError:
            # A busy daemon, or no such snapshot yet; the next question comes at once.
            return False
        return True

    def _look(self) -> None:
        seen = {pid: Process.of(pid) for pid in self._group.pids()}
        processes = {pid: process for pid, process in seen.items() if process is not None}
        for name, count in Counter(process.name for process in processes.values()).items():
            self.at_once[name] = max(self.at_once[name], count)
        memory = {"daemon": 0, "others": 0}
        for pid, process in processes.items():
            memory["daemon" if process.name == DAEMON else "others"] += anonymous_bytes(pid)
            self._cpu[pid, role(pid, processes)] = process.cpu
        for who, size in memory.items():
            self.anonymous[who] = max(self.anonymous[who], size)
