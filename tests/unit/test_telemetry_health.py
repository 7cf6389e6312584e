from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import aiohttp
import pytest
import structlog
from prometheus_client import CollectorRegistry

from imageprepull.telemetry.health import Health
from imageprepull.telemetry.logs import configure
from imageprepull.telemetry.metrics import LABEL_VALUES, AgentMetrics, BoundedLabel


async def ask(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_a_failing_check_is_named_with_its_reason() -> None:
    health = Health(CollectorRegistry())
    reason: list[str | None] = ["containerd does not answer"]
    health.ready["containerd"] = lambda: reason[0]
    health.ready["watch"] = lambda: None
    async with health.serve(0, "127.0.0.1") as port:
        assert await ask(port, "/readyz") == (503, "[-]containerd: containerd does not answer\nnot ok\n")
        assert await ask(port, "/livez") == (200, "ok\n")
        reason[0] = None
        assert await ask(port, "/readyz") == (200, "ok\n")
        assert await ask(port, "/readyz?verbose") == (200, "[+]containerd ok\n[+]watch ok\nok\n")


async def test_metrics_count_and_hosts_stay_bounded() -> None:
    metrics = AgentMetrics()
    metrics.pull_ended("failed", "Throttled")
    metrics.downloaded({f"host{number}": 1 for number in range(1000)})
    async with Health(metrics.registry).serve(0, "127.0.0.1") as port:
        status, text = await ask(port, "/metrics")
    assert status == 200
    assert 'imageprepull_pulls_total{reason="Throttled",result="failed"} 1.0' in text
    lines = [line for line in text.splitlines() if line.startswith("imageprepull_downloaded_bytes_total{")]
    assert len(lines) == LABEL_VALUES + 1
    assert f'imageprepull_downloaded_bytes_total{{host="other"}} {1000.0 - LABEL_VALUES}' in lines


def test_a_label_keeps_the_values_it_knows() -> None:
    label = BoundedLabel(limit=1)
    assert [label("a"), label("b"), label("a")] == ["a", "other", "a"]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored_logging")
def test_logs_for_machines_are_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(console=False)
    structlog.get_logger("imageprepull.test").info("image", reference="a:1", state="Ready")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["logger"]) == ("image", "info", "imageprepull.test")
    assert (line["reference"], line["state"]) == ("a:1", "Ready")
