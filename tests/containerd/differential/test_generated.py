"""Generated chains of layers through containerd 1.6, 2.4 and ours.

500 by default, always the same; `python -m tests.nightly` runs many thousands, by other seeds.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, note, settings, target

from tests.containerd.differential.comparison import compare, unpack
from tests.containerd.differential.layers import Chain
from tests.containerd.differential.listing import listing
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.strategies import chains

EXAMPLES = int(os.environ.get("IMAGEPREPULL_EXAMPLES", "500"))
NIGHTLY = "IMAGEPREPULL_EXAMPLES" in os.environ


@settings(
    max_examples=EXAMPLES,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(chain=chains())
def test_generated_chains_become_what_containerd_makes_of_them(
    chain: Chain, theirs: Reference, mine: Ours
) -> None:
    ours, reference = unpack(chain, mine, theirs)
    target(float(sum(len(outcome.tree) for outcome in ours)), label="entries made")
    found = []
    for version, outcomes in reference.items():
        found += [f"{version}: {line}" for line in compare(ours, outcomes)]
    for layer in chain if found else ():
        note(listing(layer))
    assert found == []
