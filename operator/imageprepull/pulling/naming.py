"""The last step of a pull (image.py, runtime_pull.py): the records that give the image its names, when its layers are there."""

from __future__ import annotations

from imageprepull.pulling.chain import ChainLostError
from imageprepull.pulling.cleanup import finish_anyway, patiently
from imageprepull.pulling.documents import ImageDocuments
from imageprepull.pulling.given_tags import note, without_moved_tag
from imageprepull.pulling.provenance import forget, remembered
from imageprepull.pulling.records import missing_below, record_names, take_back, write_records
from imageprepull.pulling.request import PullRequest
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.steps import Step, reached
from imageprepull.pulling.visible import wait_visible
from imageprepull.runtime.connection import Containerd


async def name_image(
    containerd: Containerd,
    unleased: Containerd,
    request: PullRequest,
    image: ImageDocuments,
    settings: PullSettings,
) -> bool:
    """Write the records and wait until the CRI shows the image by all of them; whether it shows it as pinned.

    With `tag_once`, a tag that somebody has moved since it was given to the image is left where it is.

    `containerd` is bound to the lease of the pull, if that has one, `unleased` to none.

    Raises:
        ChainLostError: something below the records is gone; they are taken back.
        PullError: NotVisible.
        RuntimeFault: the runtime did not answer for `settings.visible_timeout` seconds.
    """
    digest, reference = image.target.digest, request.reference
    if request.tag_once:
        reference = await patiently(
            lambda: without_moved_tag(containerd, request.reference, digest), settings.visible_timeout
        )
    theirs = await patiently(lambda: remembered(containerd, digest), settings.visible_timeout)
    # Once a record is there the image may look finished: who gave up now would never come to sync its layers.
    await patiently(
        lambda: write_records(
            containerd, reference, image, theirs=theirs, pin=request.pin, by_hand=request.by_hand
        ),
        settings.visible_timeout,
    )
    missing = await patiently(
        lambda: missing_below(containerd, image, snapshotter=request.snapshotter),
        settings.visible_timeout,
    )
    if missing:
        await finish_anyway(take_back(containerd, reference, image), settings.cleanup_timeout)
        raise ChainLostError(f"{missing} was gone when the records were written")
    if theirs:
        # The records say it themselves from now on.
        await patiently(lambda: forget(containerd, digest), settings.visible_timeout)
    config = image.manifest.config.digest
    names = record_names(reference, digest, config)
    if request.tag_once and reference == request.reference:
        await patiently(lambda: note(containerd, reference, digest), settings.visible_timeout)
    shown = await patiently(lambda: wait_visible(unleased, names, config, settings), settings.visible_timeout)
    reached(Step.VISIBLE, digest)
    return bool(shown and shown.pinned)
