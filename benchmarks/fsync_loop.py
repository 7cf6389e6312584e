"""A neighbour that cares for its data: small writes, each followed by fsync, until it is told to end.

`python -m benchmarks.fsync_loop FILE RESULT`: what it waited for goes to RESULT at the end, so that measuring writes
nothing meanwhile. One write every `INTERVAL` seconds: as much as a small database, and far from what a disk can do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

SIZE = 4096
FILE_SIZE = 64 << 20
INTERVAL = 0.01


def main() -> int:
    """Entry; the file is written in full before the loop begins, so that no write has to find a block."""
    file, result = Path(sys.argv[1]), Path(sys.argv[2])
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    samples: list[tuple[float, float]] = []
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(FILE_SIZE >> 20):
        os.write(fd, bytes(1 << 20))
    os.fsync(fd)
    data = os.urandom(SIZE)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    due = time.monotonic()
    offset = 0
    while not ended:
        started = time.monotonic()
        os.pwrite(fd, data, offset)
        os.fsync(fd)
        now = time.monotonic()
        samples.append((started, now - started))
        offset = (offset + SIZE) % FILE_SIZE
        due = max(due + INTERVAL, now)
        time.sleep(max(0.0, due - time.monotonic()))
    os.close(fd)
    result.write_text(json.dumps(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
