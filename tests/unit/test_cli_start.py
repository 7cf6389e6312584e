"""How the command begins and ends: nothing is imported that a present image does not need, and no output is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def python(script: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


def test_a_command_that_only_looks_imports_neither_rich_nor_aiohttp() -> None:
    look = "from imageprepull.cli.main import SUBCOMMANDS, dispatch\nimport sys\n"
    look += "dispatch('imageprepull', SUBCOMMANDS, ['pull', '--address', '/none', 'nginx'])\n"
    look += "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    look += "import rich.console"
    ran = python(look)
    assert ran.returncode == 0, ran.stderr
    imported = set(ran.stdout.split())
    assert {"structlog", "grpc"} <= imported
    assert not {"rich", "aiohttp", "kubernetes", "kopf"} & imported


@pytest.mark.parametrize("code", [0, 3])
def test_output_is_written_before_the_process_ends(code: int) -> None:
    ran = python(f"from imageprepull.cli.main import leave\nprint('told')\nleave({code})")
    assert (ran.returncode, ran.stdout) == (code, "told\n")


def test_output_that_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        assert (
            python(
                "from imageprepull.cli.main import leave\nprint('told')\nleave(0)", full.fileno()
            ).returncode
            == 120
        )
