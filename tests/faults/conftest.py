"""One machine of each containerd for the session, empty between tests; and the count of what was hit."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.containerd.conftest import VERSIONS
from tests.faults.check import clear
from tests.faults.node import Machine, machine
from tests.faults.stage import Stage
from tests.faults.stage import stage as made_stage
from tests.faults.tally import Hit, table

HITS = pytest.StashKey[dict[str, list[Hit]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HITS] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for version, hits in config.stash[HITS].items():
        if hits:
            terminalreporter.section(f"faults on containerd {version}, by the last step done")
            terminalreporter.write_line(table(hits))


@pytest.fixture(scope="session", params=VERSIONS)
def node(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if shutil.which("strace") is None:
        pytest.fail("strace is not installed: make setup")
    with machine(request.param) as running:
        yield running


@pytest.fixture
async def stage(node: Machine, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Its hits are added to those of the session."""
    if not node.daemon.running or node.spooled() or any(node.snapshots.glob("*")):
        await clear(node)  # a test has failed, and the next one is not to fail for that.
    async with made_stage(node) as found:
        yield found
        request.config.stash[HITS].setdefault(node.daemon.version, []).extend(found.hits)


@pytest.fixture
def all_hits(node: Machine, request: pytest.FixtureRequest) -> list[Hit]:
    """Those of earlier tests on this machine."""
    return request.config.stash[HITS].get(node.daemon.version, [])
