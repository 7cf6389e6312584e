"""The command's arguments, what it prints, and how it ends, without a runtime."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from imageprepull.cli.main import SUBCOMMANDS, dispatch
from imageprepull.cli.pull_display import Bars, Lines, document, size, summary
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.pulling.request import PullOutcome
from imageprepull.resources.nodeprepull import LayerState

DIGEST = "sha256:" + "a" * 64


def pull(*arguments: str) -> int:
    return dispatch("imageprepull", SUBCOMMANDS, ["pull", *arguments])


def layers(*states: LayerState) -> list[LayerProgress]:
    return [
        LayerProgress(
            digest=f"sha256:{n:064}", size=2_500_000, diff_id=f"d{n}", chain_id=f"c{n}", state=state
        )
        for n, state in enumerate(states)
    ]


def outcome(done: float | None = 3.25) -> PullOutcome:
    return PullOutcome(
        digest=DIGEST,
        config_digest="sha256:" + "c" * 64,
        layers=tuple(layers(LayerState.EXISTS, LayerState.APPLIED)),
        seconds_ready=1.23456,
        seconds_kept=2.5 if done else None,
        seconds_done=done,
        bytes_downloaded=2_500_000,
        bytes_by_host={},
        pinned=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nginx", "--output", "xml"),
        ("nginx", "--keep-blobs", "maybe"),
        ("nginx", "--parallel-downloads", "0"),
        ("nginx", "--stall-timeout", "soon"),
    ],
)
def test_wrong_options_are_usage(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        pull(*arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("arguments", [("a/b:UPPER:1",), ("nginx", "--platform", "linux")])
def test_an_image_or_platform_that_is_none_is_usage(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(*arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_socket_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull("nginx", "--address", f"unix://{tmp_path}/none.sock") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "none.sock" in line
    assert "RuntimeSocketMissing" in line


def test_a_socket_that_nobody_serves_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert pull("nginx", "--address", str(path)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failure_is_in_the_json_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull("nginx", "redis", "--output", "json", "--address", str(tmp_path / "none")) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [found["image"] for found in printed] == ["nginx", "redis"]
    assert printed[0]["error"]["reason"] == "RuntimeSocketMissing"


def test_the_document_has_every_layer() -> None:
    assert document("nginx", outcome()) == {
        "image": "nginx",
        "digest": DIGEST,
        "secondsReady": 1.235,
        "secondsKept": 2.5,
        "secondsDone": 3.25,
        "bytesDownloaded": 2_500_000,
        "layers": [
            {
                "digest": f"sha256:{0:064}",
                "size": 2_500_000,
                "diffID": "d0",
                "chainID": "c0",
                "state": "Exists",
            },
            {
                "digest": f"sha256:{1:064}",
                "size": 2_500_000,
                "diffID": "d1",
                "chainID": "c1",
                "state": "Applied",
            },
        ],
    }
    assert document("nginx", outcome(done=None))["secondsDone"] is None


def test_the_summary_says_how_much_came() -> None:
    assert summary("nginx", outcome()) == f"nginx: {DIGEST}, 2 layers (1 were there), 2.5 MB in 1.2 s"


def test_lines_say_each_change_once() -> None:
    written: list[str] = []
    image = ImageProgress(reference="nginx")
    Lines(written.append).watch(image)
    image.enter("Pulling")
    image.layers = layers(LayerState.WAITING, LayerState.WAITING)
    image.advance(image.layers[0], LayerState.DOWNLOADING, 100)
    image.advance(image.layers[0], done=200)
    image.advance(image.layers[0], LayerState.APPLIED)
    image.enter("Ready")
    assert written == [
        "nginx: Pulling",
        "nginx: 000000000000 2.5 MB Downloading",
        "nginx: 000000000000 2.5 MB Applied",
        "nginx: Ready",
    ]


def test_bars_show_image_layers_amounts_and_states() -> None:
    screen = io.StringIO()
    image = ImageProgress(reference="example/app:1")
    image.layers = layers(LayerState.DOWNLOADING, LayerState.APPLIED)
    image.layers[0].done = 1_250_000
    image.phase = "Pulling"
    with Bars(Console(file=screen, width=120, force_terminal=True, color_system=None)) as bars:
        bars.watch(image)
    shown = screen.getvalue()
    for expected in ("example/app:1", "Pulling", "1.2 MB / 2.5 MB", "Downloading", "Applied"):
        assert expected in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000, "5.0 GB"),
        (10**13, "10.0 TB"),
    ],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert size(count) == text
