"""What a command that pulls does to its process first: workers forked from it while it is small, then room for files.

Imports next to nothing, so that a fork copies next to nothing, and a present image is found in no time.
"""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imageprepull.unpacking.workers import Workers

_OPEN_FILES = 65536
"""A layer on its way has three files open, and an image up to 127 layers; many systems start with 1024."""


def start_workers() -> tuple[Workers | None, str]:
    """Who unpacks layers, or why nobody does: then the portable path is left.

    To be called before there are threads, an event loop or grpc.
    """
    # Not above: a command that is used in the wrong way needs none of it.
    from imageprepull.unpacking.workers import Workers  # noqa: PLC0415

    try:
        return Workers.start(), ""
    except (RuntimeError, OSError) as error:
        return None, str(error)


def import_structlog_alone() -> None:
    """Import structlog without rich, which it would take for the tracebacks of its console: 40 ms before the first look."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # So an import of it fails, as where it is not installed.
    try:
        import structlog.dev  # noqa: F401, PLC0415
    finally:
        del sys.modules["rich"]


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us have. After the fork: workers have their own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
