"""The chart as the real Helm renders it, for the tests of the chart."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.testbed import binaries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/imageprepull"
NAMESPACE = "imageprepull-system"
Manifest = dict[str, Any]


def helm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run helm; without a cluster. A missing binary is an error that names the command that builds it."""
    command = [str(binaries.path("helm")), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def template(values: Manifest, *, release: str = "imageprepull") -> subprocess.CompletedProcess[str]:
    return helm(
        "template", release, str(CHART), f"--namespace={NAMESPACE}", "--values=-", stdin=json.dumps(values)
    )


def render(values: Manifest | None = None, *, release: str = "imageprepull") -> list[Manifest]:
    """The objects of a release, parsed."""
    return _render(json.dumps(values or {}), release)


@cache
def _render(values: str, release: str) -> list[Manifest]:
    done = template(json.loads(values), release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(objects: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The only object of this kind and name; any name by default."""
    found = [found for found in objects if found["kind"] == kind and name in ("", found["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects {kind} {name}"
    return found[0]
