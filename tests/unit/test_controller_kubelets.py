"""From a kubelet's version to what the status says of a pin: through Node, spec and report."""

from __future__ import annotations

import pytest

from imageprepull.controller.kubelets import ignores_pins
from imageprepull.controller.nodes import read_node


@pytest.mark.parametrize(
    ("version", "ignores"),
    [
        ("v1.22.17", True),
        ("v1.24.17", True),
        ("v1.25.13", True),
        ("v1.25.14", False),
        ("v1.26.8", True),
        ("v1.26.9-eks-8cb36c9", False),
        ("v1.27.5", True),
        ("v1.27.5-gke.1200", True),
        ("v1.27.6", False),
        ("v1.28.0", True),
        ("v1.28.1+k3s1", True),
        ("v1.28.2+k3s1", False),
        ("v1.28.15", False),
        ("v1.29.0", False),
        ("v1.32.0-rc.1", False),
        ("v1.100.0", False),
        ("v2.0.0", False),
        ("", False),
        ("devel", False),
    ],
)
def test_a_kubelet_ignores_pins_until_the_patch_release_that_minds_them(version: str, ignores: bool) -> None:
    assert ignores_pins(version) is ignores
    node = {"metadata": {"name": "n"}, "status": {"nodeInfo": {"kubeletVersion": version}}}
    assert read_node(node).kubelet_without_pins == (version if ignores else "")
