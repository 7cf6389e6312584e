"""One cluster with the product installed, for all tests of the product; started on first use, gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.product import Product
from tests.testbed.cluster import Cluster
from tests.testbed.leftovers import leftovers

NAME = os.environ.get("IMAGEPREPULL_TEST_CLUSTER", "prod")
"""Two runs at once on one machine need two names."""


@pytest.fixture(scope="session")
def installed() -> Iterator[Product]:
    cluster = Cluster(NAME)
    cluster.down()
    cluster.up(disk=6 << 30)
    product = Product(cluster)
    product.install()
    yield product
    cluster.down()
    assert leftovers(NAME) == []


@pytest.fixture
def product(installed: Product) -> Iterator[Product]:
    """The installed product with an unlimited registry; afterwards no ImagePrepull is left."""
    installed.cluster.proxy.reset()
    yield installed
    installed.cluster.proxy.reset()
    installed.cluster.kubectl("delete", "imageprepull", "--all", "-A", "--wait")
