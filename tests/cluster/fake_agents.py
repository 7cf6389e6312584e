"""FAKE agents: they pull nothing and report what a test tells them to, as real ones would write it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import NODEPREPULLS, NODES, PODS

Document = dict[str, Any]


class FakeAgents:
    """All nodes' agents. `state` is what they report of wanted images; withdrawn ones become Absent."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self.state = "Ready"
        self.reason = ""
        self.layers: list[Document] = []
        self.silent: set[str] = set()
        self.keeps: set[str] = set()
        """Nodes whose agent does not carry out withdrawals."""
        self.strays: dict[str, list[Document]] = {}
        """What each node's agent reports as pinned without an entry, until it is ordered away."""
        self.compared: dict[tuple[str, str], str] = {}
        """By node and reference the last order to repair that was carried out; everything is whole."""
        self.seen: dict[str, list[Document]] = {}
        """Every spec that each node's agent was given, in order."""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(ApiError):
                documents, _ = await self._api.list(NODEPREPULLS)
                for document in documents:
                    await self._report(document)
            await asyncio.sleep(0.1)

    async def _report(self, document: Document) -> None:
        name = document["metadata"]["name"]
        history = self.seen.setdefault(name, [])
        if not history or history[-1] != document["spec"]:
            history.append(document["spec"])
        if name in self.silent:
            return
        images = [self._image(name, entry) for entry in document["spec"].get("images", ())]
        gone = [(image["reference"], image["digest"]) for image in images if image["state"] == "Absent"]
        strays = [one for one in self.strays.get(name, ()) if (one["reference"], one["digest"]) not in gone]
        self.strays[name] = strays
        status = {"observedGeneration": document["metadata"]["generation"], "images": images}
        if strays:
            status["strayPins"] = strays
        if document.get("status") != status:
            body = {"status": {"strayPins": None} | status}
            await self._api.merge_patch(NODEPREPULLS, name, body, subresource="status")

    def _image(self, name: str, entry: Document) -> Document:
        state = self.state
        if entry.get("state") == "Absent":
            state = "Ready" if name in self.keeps else "Absent"
        image = {"reference": entry["reference"], "digest": entry["digest"], "state": state}
        if entry.get("repair") and entry.get("state", "Present") == "Present":
            self.compared[name, entry["reference"]] = entry["repair"]
        if repaired := self.compared.get((name, entry["reference"])):
            image |= {"repaired": repaired, "repairResult": "2 layers are whole"}
        if state not in ("Ready", "Absent"):
            image["layers"] = self.layers
            if self.reason:
                image["reason"] = self.reason
        return image


@contextlib.asynccontextmanager
async def fake_agents(api: ApiClient) -> AsyncIterator[FakeAgents]:
    agents = FakeAgents(api)
    task = asyncio.create_task(agents.run())
    try:
        yield agents
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def add_node(
    api: ApiClient, name: str, *, agent: bool = True, labels: dict[str, str] | None = None
) -> None:
    """A Node as its kubelet would register it, and its agent's pod, ready."""
    await api.create(NODES, {"metadata": {"name": name, "labels": labels or {}}})
    status = {
        "nodeInfo": {**dict.fromkeys(NODE_INFO, ""), "operatingSystem": "linux", "architecture": "amd64"}
    }
    await api.merge_patch(NODES, name, {"status": status}, subresource="status")
    if agent:
        await add_agent(api, name)


async def add_agent(api: ApiClient, node: str) -> None:
    pod = {
        "metadata": {"name": f"agent-{node}", "labels": {"app": "agent"}},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": "agent", "image": "agent"}],
            "tolerations": [{"operator": "Exists"}],
        },
    }
    await api.create(PODS, pod, namespace="default")
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    await api.merge_patch(
        PODS,
        f"agent-{node}",
        {"status": {"conditions": [condition]}},
        namespace="default",
        subresource="status",
    )


async def remove_node(api: ApiClient, name: str) -> None:
    """As a cluster's controllers would: the pod, the Node, and the NodePrepull that the Node owned."""
    with contextlib.suppress(ApiError):
        # No kubelet is there to confirm the pod's end.
        pod = PODS.path("default", f"agent-{name}")
        await api._document("DELETE", pod, body={"gracePeriodSeconds": 0})
    for kind in (NODES, NODEPREPULLS):
        with contextlib.suppress(ApiError):
            await api.delete(kind, name)


NODE_INFO = (
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
)
