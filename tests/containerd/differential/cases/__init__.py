"""Named layers: one for every rule of how containerd applies a tar."""

from tests.containerd.differential.cases import (
    archives,
    attributes,
    compression,
    kinds,
    names,
    parents,
    whiteouts,
)
from tests.containerd.differential.cases.table import Case

TABLES = (names, attributes, parents, whiteouts, kinds, archives, compression)

ALL: list[Case] = [case for table in TABLES for case in table.CASES]
