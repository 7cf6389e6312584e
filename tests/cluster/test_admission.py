"""Who may write what, asked of the real API server with the tokens that pods have: RBAC and admission policies."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.product import NAMESPACE, Product, layer, runnable

# The first test of a run starts the cluster.
pytestmark = pytest.mark.timeout(420)
NODEPREPULLS = "/apis/imageprepull.io/v1alpha1/nodeprepulls"
STATUS = {"status": {"heartbeat": "2026-01-01T00:00:00Z"}}


class Caller:
    """Requests with one bearer token. kubectl would read a subresource before it patches, which agents may not."""

    def __init__(self, product: Product, token: str) -> None:
        config = yaml.safe_load(product.cluster.kubectl("config", "view", "--raw", "-o", "yaml"))
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"]
        self._context = ssl.create_default_context()
        if authority := cluster.get("certificate-authority-data"):
            self._context.load_verify_locations(cadata=base64.b64decode(authority).decode())
        else:
            self._context.load_verify_locations(cafile=cluster["certificate-authority"])
        self._token = token

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Status and message of the answer."""
        request = urllib.request.Request(
            self._server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=10) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, str(json.load(error).get("message", ""))


@pytest.fixture
def agent_of_a(product: Product) -> Caller:
    """The agent of node a, with a token bound to its pod as the kubelet would give it."""
    pods = product.cluster.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=agent")["items"]
    pod = next(one["metadata"]["name"] for one in pods if one["spec"]["nodeName"] == "a")
    token = product.cluster.kubectl(
        "-n",
        NAMESPACE,
        "create",
        "token",
        "imageprepull-agent",
        "--bound-object-kind=Pod",
        f"--bound-object-name={pod}",
    )
    return Caller(product, token.strip())


@pytest.fixture
def planned(product: Product) -> None:
    """Every node has a NodePrepull."""
    product.apply("admission", product.push(runnable(layer(1)), "tests/admission"))
    product.until_ready("admission")


@pytest.fixture
def agents_may_delete(product: Product) -> Iterator[None]:
    """RBAC says yes for a moment, so that the policy's own no is heard; no again afterwards, as the API server sees it."""
    product.cluster.kubectl(
        "create", "clusterrolebinding", "test-agents", "--clusterrole=cluster-admin",
        f"--serviceaccount={NAMESPACE}:imageprepull-agent",
    )  # fmt: skip
    yield
    product.cluster.kubectl("delete", "clusterrolebinding", "test-agents")
    agent = f"system:serviceaccount:{NAMESPACE}:imageprepull-agent"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": agent, "resourceAttributes": {"verb": "list", "resource": "secrets"}},
    }

    def refused() -> bool:
        answer = product.cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review))
        return not json.loads(answer)["status"]["allowed"]

    product.until("RBAC says no again", refused)


@pytest.mark.usefixtures("planned")
def test_an_agent_writes_the_status_of_its_own_node_only(product: Product, agent_of_a: Caller) -> None:
    status, message = agent_of_a("PATCH", f"{NODEPREPULLS}/a/status", STATUS)
    assert status == 200, message
    status, message = agent_of_a("PATCH", f"{NODEPREPULLS}/b/status", STATUS)
    assert status == 403
    assert "is written by the agent of that node only" in message


@pytest.mark.usefixtures("planned")
def test_a_token_of_no_node_and_an_administrator_write_no_status(product: Product) -> None:
    unbound = product.cluster.kubectl("-n", NAMESPACE, "create", "token", "imageprepull-agent").strip()
    status, message = Caller(product, unbound)("PATCH", f"{NODEPREPULLS}/a/status", STATUS)
    assert status == 403
    assert "is written by the agent of that node only" in message
    with pytest.raises(Exception, match="is written by the agent of that node only"):
        product.cluster.kubectl(
            "patch", "nodeprepull", "a", "--subresource=status", "--type=merge", "-p", json.dumps(STATUS)
        )


@pytest.mark.usefixtures("planned", "agents_may_delete")
def test_an_agent_may_not_delete_even_if_rbac_lets_it(product: Product, agent_of_a: Caller) -> None:
    def refused_by_policy() -> bool:
        status, message = agent_of_a("DELETE", f"{NODEPREPULLS}/a?dryRun=All")
        return status == 403 and "agents may not delete NodePrepulls" in message

    product.until("refused by the policy", refused_by_policy)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
        ("GET", "/api/v1/nodes/a"),
        ("PATCH", "/api/v1/nodes/a"),
        ("PATCH", f"{NODEPREPULLS}/a"),
        ("DELETE", f"{NODEPREPULLS}/a"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps"),
        ("GET", "/apis/imageprepull.io/v1alpha1/imageprepulls"),
    ],
)
def test_an_agent_may_do_nothing_else(agent_of_a: Caller, method: str, path: str) -> None:
    status, _ = agent_of_a(method, path, {} if method == "PATCH" else None)
    assert status == 403
