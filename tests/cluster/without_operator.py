"""A block in which the installed operator is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.product import NAMESPACE, Product

OPERATOR = "deployment/imageprepull-operator"
PODS = ("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")


@contextmanager
def without_operator(product: Product) -> Iterator[None]:
    """It is scaled away for the block, and ready again after it."""
    product.cluster.kubectl("-n", NAMESPACE, "scale", OPERATOR, "--replicas=0")
    try:
        product.until("the operator is away", lambda: not _alive(product))
        yield
    finally:
        product.cluster.kubectl("-n", NAMESPACE, "scale", OPERATOR, "--replicas=1")
        product.cluster.kubectl("-n", NAMESPACE, "rollout", "status", OPERATOR, "--timeout=110s")


def _alive(product: Product) -> list[str]:
    """Names of its pods. One that failed, of an eviction say, stays for good and runs nothing."""
    pods = product.cluster.get(*PODS)["items"]
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] not in {"Failed", "Succeeded"}]
