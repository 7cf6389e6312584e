"""One cluster with the product installed, for all tests of the product; started on first use, gone at the end.

And one API server with etcd for each module that tests the operator or agents against the API alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import CONFIGMAPS, IMAGEPREPULLS, LEASES, NODEPREPULLS, NODES
from tests.cluster.bare_api import BareApi
from tests.cluster.fake_agents import FakeAgents, add_node, fake_agents, remove_node
from tests.cluster.operator_bench import NODE_NAMES, apply_crds
from tests.cluster.product import Product
from tests.testbed.cluster import Cluster
from tests.testbed.leftovers import leftovers

NAME = os.environ.get("IMAGEPREPULL_TEST_CLUSTER", "prod")
"""Two runs at once on one machine need two names."""


@pytest.fixture(scope="session")
def installed() -> Iterator[Product]:
    cluster = Cluster(NAME)
    cluster.down()
    try:
        cluster.up(disk=6 << 30)
        product = Product(cluster)
        product.install()
        yield product
    finally:
        cluster.down()
    assert leftovers(NAME) == []


@pytest.fixture
def product(installed: Product) -> Iterator[Product]:
    """The installed product with an unlimited registry; afterwards no ImagePrepull is left."""
    installed.cluster.proxy.reset()
    yield installed
    installed.cluster.proxy.reset()
    installed.cluster.kubectl("delete", "imageprepull", "--all", "-A", "--wait")


@pytest.fixture(scope="module")
def bare_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    server = BareApi(tmp_path_factory.mktemp("bare-api"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def api(bare_api: BareApi) -> AsyncIterator[ApiClient]:
    """A client on a server with both CRDs, three nodes with agents, and nothing else of ours."""
    async with ApiClient(bare_api.access()) as client:
        await apply_crds(client)
        for name in NODE_NAMES:
            await add_node(client, name, labels={"zone": name})
        yield client
        for document in (await client.list(IMAGEPREPULLS))[0]:
            await client.delete(IMAGEPREPULLS, document["metadata"]["name"], namespace="default")
        for document in (await client.list(NODES))[0]:
            await remove_node(client, document["metadata"]["name"])
        for document in (await client.list(NODEPREPULLS))[0]:
            await client.delete(NODEPREPULLS, document["metadata"]["name"])
        for kind, name in ((LEASES, "imageprepull-operator"), (CONFIGMAPS, "imageprepull-pace")):
            with contextlib.suppress(ApiError):
                await client.delete(kind, name, namespace="default")


@pytest.fixture
async def agents(api: ApiClient) -> AsyncIterator[FakeAgents]:
    async with fake_agents(api) as agents:
        yield agents
