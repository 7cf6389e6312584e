"""One object now and at every change: what `status -w` draws, and `wait`, `retry` and `repair` judge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import Kind

REWATCH_SECONDS = 1.0


async def changes(
    api: ApiClient, kind: Kind, name: str, namespace: str = ""
) -> AsyncGenerator[dict[str, Any]]:
    """The object as it is, then each newer version; ends when it is deleted.

    A watch that ends or breaks is taken up again from a fresh GET, so nothing is missed for good.

    Raises:
        ApiError: the GET was refused, or there is no such object or no API server.
    """
    while True:
        document = await api.get(kind, name, namespace)
        yield document
        with contextlib.suppress(ApiError):  # the GET above tells a lasting failure
            async with aclosing(
                api.watch(
                    kind,
                    resource_version=document["metadata"]["resourceVersion"],
                    namespace=namespace,
                    field_selector=f"metadata.name={name}",
                )
            ) as events:
                async for event, changed in events:
                    if event == "DELETED":
                        return
                    if event != "BOOKMARK":
                        yield changed
        await asyncio.sleep(REWATCH_SECONDS)
