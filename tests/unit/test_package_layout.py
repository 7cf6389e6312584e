"""The package's layout holds what its import name and its image depend on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_folder_operator_is_no_package() -> None:
    assert not (ROOT / "operator/__init__.py").exists(), (
        "it would shadow the standard library's module operator"
    )


def test_operator_is_still_the_standard_librarys() -> None:
    spec = importlib.util.find_spec("operator")
    assert spec is not None
    assert spec.origin is not None
    assert not Path(spec.origin).is_relative_to(ROOT)
