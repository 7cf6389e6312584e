"""What tests of the operator against the API alone ask and do. Nodes have no kubelets, and the agents are FAKE."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import CRDS, IMAGEPREPULLS, LEASES, NODEPREPULLS
from tests.cluster.bare_api import Child, Operator

CRD_FILES = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))
PINNED = "registry.invalid/x/pinned@sha256:" + "a" * 64
OTHER = "registry.invalid/x/other@sha256:" + "b" * 64
NODE_NAMES = ("n1", "n2", "n3")


async def established(api: ApiClient) -> bool:
    await api.list(IMAGEPREPULLS)
    await api.list(NODEPREPULLS)
    return True


async def apply_crds(api: ApiClient) -> None:
    """Both CRDs, as an upgrade does it, also after an accident; returns when they are served."""
    for file in CRD_FILES:
        crd = yaml.safe_load(file.read_text())
        name = crd["metadata"]["name"]
        await eventually(lambda name=name: is_settled(api, name))  # type: ignore[misc]
        await api.apply(CRDS, name, crd, field_manager="test", force=True)
    await eventually(lambda: established(api))


async def is_settled(api: ApiClient, crd: str) -> bool:
    """Whether it is there for good or gone: what is applied to one that is being deleted goes with it."""
    try:
        found = await api.get(CRDS, crd)
    except ApiError as error:
        if not error.not_found:
            raise
        return True
    return "deletionTimestamp" not in found["metadata"]


async def eventually(check: Callable[[], Any], within: float = 60) -> Any:
    """Ask until the answer is true; the last failed assertion or API error is the test's."""
    end = time.monotonic() + within
    while True:
        try:
            answer = await check()
            assert answer
        except (AssertionError, ApiError, OSError, KeyError, IndexError):
            if time.monotonic() > end:
                raise
        else:
            return answer
        await asyncio.sleep(0.1)


async def create(api: ApiClient, name: str, *images: str, **spec: Any) -> dict[str, Any]:
    body = {
        "apiVersion": IMAGEPREPULLS.api_version,
        "kind": IMAGEPREPULLS.kind,
        "metadata": {"name": name},
        "spec": {"images": [{"image": image} for image in images], **spec},
    }
    return await api.create(IMAGEPREPULLS, body, namespace="default")


async def status(api: ApiClient, name: str) -> dict[str, Any]:
    document = await api.get(IMAGEPREPULLS, name, "default")
    found: dict[str, Any] = document["status"]
    assert found["observedGeneration"] == document["metadata"]["generation"]
    return found


async def condition(api: ApiClient, name: str, kind: str) -> dict[str, Any]:
    document = await api.get(IMAGEPREPULLS, name, "default")
    found = next(one for one in document["status"]["conditions"] if one["type"] == kind)
    assert found["observedGeneration"] == document["metadata"]["generation"]
    return dict(found)


def ready(api: ApiClient, name: str, value: str = "True") -> Callable[[], Any]:
    async def check() -> bool:
        found = await condition(api, name, "Ready")
        assert found["status"] == value, found
        return True

    return check


async def entries(api: ApiClient, node: str) -> dict[str, str]:
    document = await api.get(NODEPREPULLS, node)
    return {one["reference"]: one.get("state", "Present") for one in document["spec"].get("images", ())}


def holds(api: ApiClient, node: str, **wanted: str) -> Callable[[], Any]:
    async def check() -> bool:
        found = {
            reference.split("/")[-1].split("@")[0]: state
            for reference, state in (await entries(api, node)).items()
        }
        assert found == wanted
        return True

    return check


async def answers(operator: Operator, question: str) -> bool:
    try:
        code, text = await asyncio.to_thread(operator.ask, question)
    except OSError as error:
        raise AssertionError(f"{error}:\n{operator.tail()}") from error
    assert code == 200, text
    return True


async def has_ended(child: Child) -> bool:
    return child.ended() is not None


async def holder(api: ApiClient) -> str:
    lease = await api.get(LEASES, "imageprepull-operator", "default")
    return str(lease["spec"].get("holderIdentity") or "")


async def led_by(api: ApiClient, identity: str) -> bool:
    assert await holder(api) == identity
    return True
