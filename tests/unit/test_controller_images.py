from typing import Any

import pytest

from imageprepull.controller.images import BadSpec, read_images
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepullSpec

PINNED = "nginx@sha256:" + "a" * 64


def read(*images: str, **spec: Any) -> Any:
    return read_images(decode(ImagePrepullSpec, {"images": [{"image": image} for image in images], **spec}))


def test_records_are_containerds() -> None:
    assert [image.record for image in read("nginx", "registry:5000/a/b:1", PINNED)] == [
        "docker.io/library/nginx:latest",
        "registry:5000/a/b:1",
        "docker.io/library/" + PINNED,
    ]


@pytest.mark.parametrize(
    ("images", "spec", "reason", "named"),
    [
        (["ok", "Upper/Case"], {}, "InvalidReference", ["spec.images[1].image", "Upper/Case"]),
        (
            ["nginx", "docker.io/library/nginx:latest"],
            {},
            "DuplicateImage",
            ["spec.images[1].image", "docker.io/library/nginx:latest", "spec.images[0].image", "'nginx'"],
        ),
        (["nginx"], {"suspend": True}, "FieldNotSupported", ["spec.suspend=true"]),
        (["nginx"], {"rollout": {"seedNodes": 3}}, "FieldNotSupported", ["spec.rollout.seedNodes=3"]),
    ],
)
def test_a_bad_spec_is_refused_by_field_and_value(
    images: list[str], spec: dict[str, Any], reason: str, named: list[str]
) -> None:
    bad = read(*images, **spec)
    assert isinstance(bad, BadSpec)
    assert bad.reason == reason
    for text in named:
        assert text in bad.message


def test_one_tag_and_its_digest_are_two_images() -> None:
    assert len(read("nginx:1", PINNED)) == 2
