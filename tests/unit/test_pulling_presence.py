"""What of presence real daemons cannot be brought to show: a CRI that knows the names and not the ID."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from imageprepull.pulling import presence
from imageprepull.runtime.connection import Containerd

ID = "sha256:" + "c" * 64
NAMES = ["a/b:1", "a/b@sha256:" + "d" * 64]


class Cri:
    def __init__(self, unknown: str) -> None:
        self.unknown = unknown

    async def image_status(self, name: str) -> Any:
        return None if name == self.unknown else SimpleNamespace(id=ID, pinned=True)


@pytest.mark.parametrize("unknown", ["", *NAMES, ID])
async def test_the_cri_must_show_the_image_under_every_name_and_its_id(unknown: str) -> None:
    containerd = cast("Containerd", SimpleNamespace(namespace="k8s.io", cri=Cri(unknown)))
    if not unknown:
        assert await presence._visible(containerd, NAMES, ID)
        return
    with pytest.raises(presence._MissingError, match=unknown):
        await presence._visible(containerd, NAMES, ID)
