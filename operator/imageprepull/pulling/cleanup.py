"""Cleaning up after a failure or a cancellation: it must end, and it must not be interrupted a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


async def finish_anyway(work: Coroutine[Any, Any, object], seconds: float) -> None:
    """Run `work` to its end, or for `seconds`, whatever happens to the caller meanwhile.

    A failure is logged and not raised: the error that led here is the one to report. A cancellation that arrives
    is raised again afterwards.
    """
    task = asyncio.create_task(_bounded(work, seconds))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _bounded(work: Coroutine[Any, Any, object], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except Exception as error:  # noqa: BLE001 - see finish_anyway.
        log.warning("cleaning up failed", error=str(error) or type(error).__name__)
