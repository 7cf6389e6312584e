"""`repair` of an entry: a present image is compared with its blobs once for each new value. Run by the reconciler.

What is broken is removed by it; that the image is missing then, and is pulled, the reconciler finds as ever.
"""

from __future__ import annotations

import structlog

from imageprepull.agent.accounts import Accounts
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held, Node, NodeError
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.space import OUT_OF_SPACE
from imageprepull.resources.nodeprepull import DesiredImage

logger = structlog.get_logger(__name__)


async def compared(node: Node, view: ImageView, image: DesiredImage, accounts: Accounts) -> bool:
    """Compare, and note in `view` what came of it; a runtime that does not answer is asked again.

    Whether something was removed, and with it, perhaps, other images that stood on it. Without room for it the order is
    not carried out: that is waited for.
    """
    try:
        found = await node.verify(image, ImageProgress(image.reference))
    except NodeError as error:
        if not error.unavailable:
            _not_compared(view, image, accounts, error)
        return False
    except Exception as error:
        # A defect in one image's check must not take the node's other images down with it.
        logger.exception("comparing failed unexpectedly", image=image.reference, digest=image.digest)
        defect = NodeError("InternalError", f"{type(error).__name__}: {error}")
        _not_compared(view, image, accounts, defect)
        return False
    view.answer_repair(image.repair, found.text)
    if found.broken:
        # Whoever reads the answer must not take it for ready in the moment before the runtime is asked again.
        view.held = Held(False, missing=found.text)
        # Nobody took it: that is no loss.
        view.pulled = None
    logger.info("compared with its blobs", image=image.reference, digest=image.digest, result=found.text)
    return found.broken


def _not_compared(view: ImageView, image: DesiredImage, accounts: Accounts, error: NodeError) -> None:
    text = f"{error.reason}: {error}"
    if error.reason not in OUT_OF_SPACE:
        view.answer_repair(image.repair, text, error.reason)
    elif image.repair == view.desired.repair:  # else another order has come, which is tried at once.
        view.answer_repair("", text, error.reason)
        accounts.cannot_compare(view, error.no_room)
    logger.warning("not compared with its blobs", image=image.reference, digest=image.digest, why=text)
