from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from imageprepull.agent.kubelet import thresholds_of
from imageprepull.cli import agent
from imageprepull.kube.access import AccessError
from imageprepull.pulling.space import Thresholds


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    agent.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_NAME", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def test_flags_become_settings() -> None:
    settings = agent.settings_of(
        parsed(
            "--node-name=n1",
            "--namespace=ns",
            "--server=http://127.0.0.1:1/",
            "--hosts-dir=/a:/b",
            "--resync=7",
            "--report-interval=0.5",
            "--failed-retry-interval=9",
            "--keep-blobs=never",
            "--kubelet-eviction-hard=imagefs.available<10Gi",
            "--kubelet-image-gc-high=70",
            "--disk-interval=3",
            "--operator-lease=blue",
            "--operator-lease-poll=0.5",
            "--order-retry-interval=4",
            "--keep-unchosen=5",
        )
    )
    assert (settings.node_name, settings.namespace, settings.access.server) == (
        "n1",
        "ns",
        "http://127.0.0.1:1",
    )
    assert settings.hosts_dirs == (Path("/a"), Path("/b"))
    assert (settings.delays.resync, settings.delays.retry_slow, settings.delays.unchosen) == (7, 9, 5)
    assert settings.pace.report_interval == 0.5
    assert settings.keep_blobs == "never"
    assert settings.thresholds == thresholds_of("imagefs.available<10Gi", 70)
    assert settings.disk_interval == 3
    assert (settings.operator_lease, settings.lease_poll, settings.delays.retry_order) == ("blue", 0.5, 4)
    assert settings.address == "unix:///run/containerd/containerd.sock"


def test_name_and_namespace_come_from_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "n2")
    monkeypatch.setenv("POD_NAMESPACE", "system")
    settings = agent.settings_of(parsed("--server=http://127.0.0.1:1"))
    assert (settings.node_name, settings.namespace) == ("n2", "system")
    assert settings.thresholds == Thresholds(), "the kubelet's own defaults"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="--node-name"):
        agent.settings_of(parsed("--namespace=ns"))
    with pytest.raises(AccessError, match="--server"):
        agent.settings_of(parsed("--node-name=n1", "--namespace=ns"))


@pytest.mark.parametrize("flag", ["--resync=0", "--report-interval=-1", "--backoff-base=nan"])
def test_a_delay_must_be_positive(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(flag)
    assert "positive" in capsys.readouterr().err
