"""Waiting until the CRI sees the image: it learns of records by events, some time after they are written."""

from __future__ import annotations

import asyncio

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.settings import PullSettings
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.cri import CriImage

CRI_NAMESPACE = "k8s.io"


async def wait_visible(
    containerd: Containerd, names: list[str], config_digest: str, settings: PullSettings
) -> CriImage | None:
    """Ask `ImageStatus` until every name means this image; None where the CRI does not look at all.

    Raises:
        PullError: NotVisible, after `settings.visible_timeout` seconds.
    """
    if containerd.namespace != CRI_NAMESPACE:
        return None
    found: CriImage | None = None
    name = ""
    try:
        async with asyncio.timeout(settings.visible_timeout):
            for name in names:
                delay = settings.visible_poll
                while (found := await containerd.cri.image_status(name)) is None or found.id != config_digest:
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, settings.visible_poll_cap)
    except TimeoutError as error:
        seen = f"it shows {found.id} there" if found else "it does not know that name"
        raise PullError(
            "NotVisible",
            f"the runtime's CRI does not show {config_digest} as {name} after "
            f"{settings.visible_timeout:g} s ({seen}); look into the runtime's log",
        ) from error
    return found
