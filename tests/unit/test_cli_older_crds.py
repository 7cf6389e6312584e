"""An order for which a CRD has no place is refused at once, and no other one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imageprepull.cli.kubeconfig import Target
from imageprepull.cli.older_crds import OlderCrds
from imageprepull.cli.repair import repair
from imageprepull.cli.retry import retry
from imageprepull.cli.waiting import FAILED, TIMED_OUT, ended
from imageprepull.controller.retries import RetryOrder
from tests.unit.fake_api_server import FakeApiServer, serve

CRDS = [yaml.safe_load(file.read_text()) for file in (Path(__file__).parents[2] / "crds").glob("*.yaml")]
Command = Callable[[FakeApiServer], Awaitable[int]]


def schemas(missing: str = "") -> dict[str, Any]:
    """As the API server publishes them; `missing` is a field as `nodeprepulls spec.images.repair`."""
    found = {}
    plural, _, path = missing.partition(" ")
    for crd in CRDS:
        names, (version,) = crd["spec"]["names"], crd["spec"]["versions"]
        schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
        if names["plural"] == plural:
            *way, last = path.split(".")
            node = schema
            for name in way:
                node = node["properties"][name]
                node = node.get("items", node)
            del node["properties"][last]
        kind = {"group": crd["spec"]["group"], "version": version["name"], "kind": names["kind"]}
        schema["x-kubernetes-group-version-kind"] = [kind]
        found[f"some.name.of.{names['kind']}"] = schema
    return found


async def retrying(server: FakeApiServer) -> int:
    return await retry(Target(server.access(), "shop"), "web", RetryOrder("n1"), 0.2)


async def repairing(server: FakeApiServer) -> int:
    return await repair(Target(server.access(), "shop"), "n1", "", 0.2)


async def answered(server: FakeApiServer, command: Command) -> int:
    await server.put("web", namespace="shop", spec={"images": [{"image": "web:1"}]})
    image = {"reference": "a", "digest": "sha256:" + "a" * 64}
    await server.put("n1", spec={"images": [image]})
    async with asyncio.timeout(30):
        return await command(server)


@pytest.mark.parametrize(
    ("command", "missing", "named"),
    [
        (retrying, "nodeprepulls spec.images.retry.nonce", "spec.images.retry.nonce"),
        (retrying, "nodeprepulls spec.images.retry", "spec.images.retry.nonce"),
        (retrying, "imageprepulls status.retry", "status.retry.nonce"),
        (repairing, "nodeprepulls spec.images.repair", "spec.images.repair"),
        (repairing, "nodeprepulls status.images.repaired", "status.images.repaired"),
        (repairing, "nodeprepulls status.images.repairReason", "status.images.repairReason"),
    ],
)
async def test_an_order_that_a_crd_has_no_place_for_is_refused_before_it_is_given(
    command: Command, missing: str, named: str
) -> None:
    async with serve() as server:
        server.schemas = schemas(missing)
        with pytest.raises(OlderCrds) as refused:
            await answered(server, command)
        assert "PATCH" not in server.methods()
    assert f"{missing.partition(' ')[0]}.imageprepull.io lacks {named}" in str(refused.value)
    assert "upgrade them with `helm upgrade`" in str(refused.value)
    assert "`kubectl apply -f crds/`" in str(refused.value)


def test_a_refusal_is_an_error_with_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise OlderCrds("upgrade them")

    assert ended(work) == FAILED
    assert capsys.readouterr().err == "error: upgrade them\n"


@pytest.mark.parametrize(
    "served",
    [
        schemas(),
        # What an order can do without.
        schemas("nodeprepulls spec.kubeletWithoutPins"),
        schemas("imageprepulls status.retry.exampleImage"),
        # What tells nothing, or cannot be read.
        {"of.another": {"type": "object"}},
        {
            "of.no.fields": {
                "x-kubernetes-group-version-kind": schemas()["some.name.of.NodePrepull"][
                    "x-kubernetes-group-version-kind"
                ]
            }
        },
        {},
        None,
    ],
    ids=["full", "no matter", "only shown", "another", "without fields", "nothing", "not served"],
)
@pytest.mark.parametrize("command", [retrying, repairing])
async def test_every_other_order_is_given(served: dict[str, Any] | None, command: Command) -> None:
    async with serve() as server:
        server.schemas = served
        assert await answered(server, command) == TIMED_OUT, "nobody is there to answer it"
        assert "PATCH" in server.methods()
