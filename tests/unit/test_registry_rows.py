"""Every known behaviour of registries has a switch and a test, or a reason why its place is elsewhere.

A test is named by its rows: `test_row_29_…`, `test_row_56_57_…`. The list of behaviours has the rows 1 to 86:
1-22 authorisation, 23-33 redirects, 34-50 manifests, 51-69 blobs and ranges, 70-76 limits, 77-86 TLS, proxies and
hosts.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

import tests.testbed.faulty_registry_authorisation
import tests.testbed.faulty_registry_blobs
import tests.testbed.faulty_registry_limits
import tests.testbed.faulty_registry_manifests
import tests.testbed.faulty_registry_redirects  # noqa: F401 - registers the switches
from tests.testbed.faulty_registry_quirks import SWITCHES

ROWS = range(1, 87)
ELSEWHERE = {
    81: "a proxy in containerd's unit only: the agent compares environments on a node; nothing the client can see",
    86: "the fallback through the runtime ignores hosts.toml: the agent says which path was used",
}
"""This list may only get shorter."""
WITHOUT_SWITCH = {
    66: "answers that are not valid HTTP: a bare socket, as aiohttp's server cannot be made to send them",
    77: "certificates (faulty_registry_tls)",
    78: "certificates (faulty_registry_tls)",
    79: "certificates (faulty_registry_tls)",
    80: "the environment of the client",
    82: "an address of the host",
    83: "the path of the host in hosts.toml",
    84: "headers of the host in hosts.toml",
    85: "certificates (faulty_registry_tls)",
}
"""Rows that are not about what a registry answers; their tests set them up themselves."""


def rows_of_tests() -> set[int]:
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_registry_*.py"):
        for numbers in re.findall(r"^(?:async )?def test_row((?:_\d+)+)_", path.read_text(), re.MULTILINE):
            found |= {int(number) for number in numbers.strip("_").split("_")}
    return found


def test_every_row_is_tested_or_has_its_place_elsewhere() -> None:
    assert rows_of_tests() | ELSEWHERE.keys() == set(ROWS)
    assert not rows_of_tests() & ELSEWHERE.keys()


def test_every_row_that_a_registry_can_show_has_a_switch() -> None:
    assert SWITCHES.keys() | WITHOUT_SWITCH.keys() == rows_of_tests()
    assert not SWITCHES.keys() & WITHOUT_SWITCH.keys()


def test_the_list_of_exceptions_only_gets_shorter() -> None:
    assert len(ELSEWHERE) <= 2
    assert len(WITHOUT_SWITCH) <= 9
