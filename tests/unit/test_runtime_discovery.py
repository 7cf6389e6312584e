"""How the snapshotter is chosen from what a runtime says about itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.runtime.cri import ImageFilesystem
from imageprepull.runtime.discovery import choose_snapshotter, parse_cri_config
from imageprepull.runtime.introspection import Plugin

KIND = "io.containerd.snapshotter.v1"
OVERLAY = Plugin(KIND, "overlayfs", {"root": "/data/layers"})
STARGZ = Plugin(KIND, "stargz", {"address": "/run/stargz.sock", "root": "/data/stargz"})


def test_configuration_wins() -> None:
    config = {"containerd": {"snapshotter": "stargz"}}
    found = choose_snapshotter(config, [ImageFilesystem("/data/layers", 0)], [OVERLAY, STARGZ])
    assert found == ("stargz", "config")


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        ("/data/layers", "overlayfs"),
        ("/data/stargz", "stargz"),
        (f"/var/lib/containerd/{KIND}.native", "native"),
        (f"/var/lib/containerd/{KIND}.devmapper/", "devmapper"),
    ],
)
def test_image_file_system_names_the_snapshotter(mountpoint: str, name: str) -> None:
    found = choose_snapshotter({}, [ImageFilesystem(mountpoint, 0)], [OVERLAY, STARGZ])
    assert found == (name, "filesystem")


@pytest.mark.parametrize("mountpoint", ["", "/", "/somewhere", f"/x/{KIND}.", f"/x/my-{KIND}.native"])
def test_unknown_mount_point_means_the_default(mountpoint: str) -> None:
    found = choose_snapshotter({}, [ImageFilesystem(mountpoint, 0)], [OVERLAY])
    assert found == ("overlayfs", "default")


def test_runtime_that_says_nothing_means_the_default() -> None:
    assert choose_snapshotter({}, [], []) == ("overlayfs", "default")


@given(st.dictionaries(st.sampled_from(["containerd", "config"]), st.text() | st.none()))
def test_configuration_of_another_shape_is_no_configuration(config: dict[str, str | None]) -> None:
    assert choose_snapshotter(config, [], []) == ("overlayfs", "default")


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null", '"text"'])
def test_status_without_a_configuration(text: str) -> None:
    assert parse_cri_config({"config": text}) == {}
    assert parse_cri_config({}) == {}


def test_status_with_a_configuration() -> None:
    assert parse_cri_config({"config": '{"containerd": {}}'}) == {"containerd": {}}
