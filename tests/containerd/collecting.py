"""A collection at every chance: `pytest -p tests.containerd.collecting tests/containerd`.

containerd collects when it likes, after so many changes of anybody. What a pull or a test leaves to nobody is gone then
once in a thousand times, beside anything. With this plug-in a collection follows every change, of the product and of
the test, so that whoever counts on what nothing holds is found each time.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from imageprepull.runtime.content import Content
from imageprepull.runtime.errors import RuntimeFault
from imageprepull.runtime.images import Images
from imageprepull.runtime.leases import Leases
from imageprepull.runtime.rpc import Rpc
from imageprepull.runtime.snapshots import Snapshots

# A collection is for all namespaces: in one of its own its lease is in nobody's way.
NAMESPACE = "collecting"
CHANGES: dict[type, list[str]] = {
    Content: ["put", "ingest", "record", "update_labels", "delete", "abort"],
    Images: ["create", "update", "update_labels", "delete"],
    Snapshots: ["prepare", "view", "commit", "update_labels", "remove"],
    Leases: ["create", "add_resource", "delete", "delete_resource"],
}
_numbers = itertools.count()
_create, _delete = Leases.create, Leases.delete


async def _collect(rpc: Rpc) -> None:
    """Without a word if the daemon is away: then it collects at its start."""
    leases, name = Leases(Rpc(rpc.channels, NAMESPACE)), f"collecting-{next(_numbers)}"
    try:
        await _create(leases, name, {}, 60)
        await _delete(leases, name, sync=True)
    except RuntimeFault:
        return


def collected(change: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same, and a collection before it is over."""

    @functools.wraps(change)
    async def changed(self: Any, *arguments: Any, **options: Any) -> Any:
        done = await change(self, *arguments, **options)
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            await _collect(self._rpc)
        return done

    return changed


def pytest_configure() -> None:
    """For the whole run."""
    for service, names in CHANGES.items():
        for name in names:
            setattr(service, name, collected(getattr(service, name)))
