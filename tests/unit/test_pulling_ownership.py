"""Whose a record is, and what somebody else has made of it since it was looked at."""

from __future__ import annotations

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.labels import CRI_PINNED, MANAGED, PINNED, RESTORED
from imageprepull.pulling.ownership import deletion_order, done_by_others, of_somebody_else, taken_since
from imageprepull.pulling.provenance import to_remember
from imageprepull.runtime.images import ImageRecord

ONE, TWO, THREE = (f"sha256:{letter * 64}" for letter in "123")
OURS = {MANAGED: "true"}
OUR_PIN = OURS | {CRI_PINNED: "pinned", PINNED: "true"}
THEIR_PIN = OURS | {CRI_PINNED: "pinned"}
THEIRS_BUT_OUR_PIN = {CRI_PINNED: "pinned", PINNED: "true"}
BACK = {MANAGED: RESTORED}


def record(digest: str, labels: dict[str, str], name: str = "docker.io/library/nginx:1") -> ImageRecord:
    target = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=digest, size=1)
    return ImageRecord(name, target, labels)


@pytest.mark.parametrize(
    ("labels", "done"),
    [
        (OURS, set()),
        (OUR_PIN, set()),
        (THEIR_PIN, {"pinned"}),
        ({}, {"made"}),
        (THEIRS_BUT_OUR_PIN, {"made"}),
        (BACK, {"made"}),
        (BACK | THEIRS_BUT_OUR_PIN, {"made"}),
        ({CRI_PINNED: "pinned"}, {"made", "pinned"}),
        (BACK | {CRI_PINNED: "pinned"}, {"made", "pinned"}),
    ],
)
def test_whose_a_record_is(labels: dict[str, str], done: set[str]) -> None:
    assert done_by_others(record(ONE, labels)) == done
    assert of_somebody_else(record(ONE, labels)) == min(done, default=""), "that it was made says more"


def test_an_image_is_somebody_elses_under_each_of_its_names() -> None:
    """Records of one config may have several targets: an index, and the manifest that it leads to."""
    images = [
        [record(ONE, OURS), record(TWO, {}, "docker.io/library/nginx:2")],
        [record(ONE, OURS, "docker.io/library/other:1"), record(THREE, THEIR_PIN)],
        [record("sha256:" + "4" * 64, OUR_PIN)],
        [],
    ]
    assert to_remember(images) == {ONE: {"made", "pinned"}, TWO: {"made"}, THREE: {"pinned"}}
    assert to_remember(reversed(images)) == to_remember(images)


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        (record(ONE, OURS), record(ONE, OURS), ""),
        (record(ONE, OURS), record(ONE, OUR_PIN), ""),
        (record(ONE, OURS), record(TWO, OURS), ""),
        (record(ONE, OURS), record(THREE, OURS), "made"),
        (record(ONE, OURS), record(ONE, {}), "made"),
        (record(ONE, OUR_PIN), record(ONE, THEIR_PIN), "pinned"),
        (record(ONE, {}), record(ONE, {}), ""),
        (record(ONE, {}), record(THREE, {}), "made"),
        (record(ONE, {}), record(ONE, {CRI_PINNED: "pinned"}), "pinned"),
        (record(ONE, BACK), record(ONE, BACK | {CRI_PINNED: "pinned"}), "pinned"),
        (record(ONE, {CRI_PINNED: "pinned"}), record(ONE, {}), ""),
        (record(ONE, THEIR_PIN), record(ONE, THEIR_PIN), ""),
        (record(ONE, THEIR_PIN), record(ONE, {}), "made"),
    ],
)
def test_what_was_done_to_a_record_since_it_was_judged(
    before: ImageRecord, now: ImageRecord, what: str
) -> None:
    assert taken_since(before, now, {ONE, TWO}) == what


def test_the_id_is_deleted_last_and_tags_first() -> None:
    names = [TWO, "docker.io/library/nginx@" + ONE, "docker.io/library/nginx:1"]
    ordered = deletion_order(record(ONE, OURS, name) for name in names)
    assert [one.name for one in ordered] == names[::-1]
