"""`repair` of an entry: a present image is compared with its blobs once for each new value. Run by the reconciler.

What is broken is removed by it; that the image is missing then, and is pulled, the reconciler finds as ever.
"""

from __future__ import annotations

import structlog

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Compared, Held, Node, NodeError
from imageprepull.pulling.progress import ImageProgress
from imageprepull.resources.nodeprepull import DesiredImage

logger = structlog.get_logger(__name__)


async def compared(node: Node, view: ImageView, image: DesiredImage) -> None:
    """Compare, and note in `view` what came of it; a runtime that does not answer is asked again."""
    try:
        found = await node.verify(image, ImageProgress(image.reference))
    except NodeError as error:
        if error.unavailable:
            return
        found = Compared(f"{error.reason}: {error}")
    except Exception as error:
        # A defect in one image's check must not take the node's other images down with it.
        logger.exception("comparing failed unexpectedly", image=image.reference, digest=image.digest)
        found = Compared(f"InternalError: {type(error).__name__}: {error}")
    view.repaired, view.repair_result = image.repair, found.text
    if found.broken:
        # Whoever reads the answer must not take it for ready in the moment before the runtime is asked again.
        view.held = Held(False, missing=found.text)
        # Nobody took it: that is no loss.
        view.pulled = None
    logger.info("compared with its blobs", image=image.reference, digest=image.digest, result=found.text)
