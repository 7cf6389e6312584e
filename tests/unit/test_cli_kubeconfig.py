"""What the command line takes from a kubeconfig: server, token and namespace."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from imageprepull.cli import kubeconfig
from imageprepull.kube.access import AccessError

TEXT = """\
apiVersion: v1
kind: Config
current-context: one
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: secret}}]
contexts:
- {name: one, context: {cluster: c, user: u, namespace: first}}
- {name: two, context: {cluster: c, user: u}}
"""


def arguments(folder: Path, context: str | None = None, namespace: str | None = None) -> argparse.Namespace:
    path = folder / "config"
    path.write_text(TEXT)
    return argparse.Namespace(kubeconfig=str(path), context=context, namespace=namespace)


def test_the_users_token_is_sent(tmp_path: Path) -> None:
    access = kubeconfig.target(arguments(tmp_path)).access
    assert (access.server, access.token()) == ("http://127.0.0.1:1", "secret")


@pytest.mark.parametrize(
    ("context", "namespace", "expected"),
    [(None, None, "first"), ("two", None, "default"), ("two", "mine", "mine")],
)
def test_the_namespace_is_the_flags_or_the_contexts(
    tmp_path: Path, context: str | None, namespace: str | None, expected: str
) -> None:
    assert kubeconfig.target(arguments(tmp_path, context, namespace)).namespace == expected


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="nope"):
        kubeconfig.target(arguments(tmp_path, "nope"))
