"""Both daemons and our unpacker, once per session, on one file system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containerd.differential.ours import Ours, ours
from tests.containerd.differential.reference import Reference, reference


@pytest.fixture(scope="session")
def theirs() -> Iterator[Reference]:
    with reference() as running:
        yield running


@pytest.fixture(scope="session")
def mine(theirs: Reference) -> Iterator[Ours]:
    with ours(theirs.folder / "ours") as unpacker:
        yield unpacker
