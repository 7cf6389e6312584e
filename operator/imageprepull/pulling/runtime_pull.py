"""An image that our registry client cannot fetch, pulled by the runtime itself through the CRI: once, and said so.

Go's HTTP client takes some answers that ours refuses as invalid. The runtime follows its own hosts.toml and proxy, and
tells no progress; what it brought is given the same records and pins as what we bring.
"""

from __future__ import annotations

import time

import structlog

from imageprepull.pulling.chain import ChainLostError
from imageprepull.pulling.documents import read_stored
from imageprepull.pulling.durability import make_durable
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.naming import name_image
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.pulling.request import PullOutcome, PullRequest
from imageprepull.pulling.visible import CRI_NAMESPACE
from imageprepull.registry.faults import PROTOCOL_ERROR
from imageprepull.resources.nodeprepull import LayerState

log = structlog.get_logger(__name__)


def runtime_may(machinery: Machinery, failure: PullError) -> bool:
    """Whether the runtime is asked for what failed here: not where the administrator wants our path or none."""
    return (
        failure.reason == PROTOCOL_ERROR
        and failure.permanent
        and machinery.containerd.namespace == CRI_NAMESPACE
        and machinery.extraction.wish != "fast"
    )


async def pull_by_runtime(
    machinery: Machinery, request: PullRequest, progress: ImageProgress, failure: PullError
) -> PullOutcome:
    """Let the runtime pull what ended in `failure` here. The caller gives up what the failed attempt has kept.

    Raises:
        PullError: the reason of `failure`, permanent: the runtime could not do it either.
    """
    began = time.monotonic()
    digest = progress.digest or request.digest or request.reference.digest
    # By digest, or a tag that has moved would bring another image than was asked for.
    name = request.reference.digest_record(digest) if digest else request.reference.canonical
    progress.note = f"left to the runtime's own pull, which shows no progress: {failure.message}"
    progress.enter("PullingByRuntime")
    log.warning("an image is left to the runtime", image=name, reason=failure.reason, error=failure.message)
    try:
        await machinery.containerd.cri.pull_image(name, machinery.settings.runtime_pull_timeout)
        outcome = await _finish(machinery, request, progress, name, began)
    except Exception as error:
        found = as_pull_error(error)
        raise PullError(
            failure.reason,
            f"{failure.message}; the runtime's own pull failed, too: {found.message}",
            permanent=True,
        ) from error
    return outcome


async def _finish(
    machinery: Machinery, request: PullRequest, progress: ImageProgress, name: str, began: float
) -> PullOutcome:
    containerd = machinery.containerd
    record = await containerd.images.get(name)
    if record is None:
        raise PullError("NotVisible", f"the runtime pulled {name} and has no record of it")
    digest = record.target.digest
    image = await read_stored(
        containerd,
        record.target,
        request.platform,
        lambda missing: PullError("NotVisible", f"the runtime pulled {digest} and lacks {missing}"),
    )
    progress.digest = digest
    progress.layers = [
        LayerProgress.of(layer, LayerState.APPLIED, layer.descriptor.size) for layer in image.layers
    ]
    progress.enter("Finishing")
    # Some of the layers may be what an attempt of ours has committed and not synced.
    await make_durable(
        containerd,
        request.snapshotter,
        machinery.writes,
        machinery.boot_id,
        [layer.chain_id for layer in image.layers],
    )
    try:
        pinned = await name_image(containerd, containerd, request, image, machinery.settings)
    except ChainLostError as error:
        raise PullError("NotVisible", str(error)) from error
    seconds = time.monotonic() - began
    progress.seconds["ready"] = progress.seconds["done"] = seconds
    progress.enter("Done")
    return PullOutcome(
        digest=digest,
        config_digest=image.manifest.config.digest,
        layers=tuple(progress.layers),
        seconds_ready=seconds,
        seconds_kept=seconds,
        seconds_done=seconds,
        bytes_downloaded=sum(progress.bytes_by_host.values()),
        bytes_by_host=dict(progress.bytes_by_host),
        pinned=pinned,
    )
