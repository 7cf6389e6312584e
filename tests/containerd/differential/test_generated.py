"""Generated chains of layers through containerd 1.6, 2.4 and ours.

500 by default, always the same; `python -m tests.nightly` runs many thousands, by other seeds.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, note, settings, target

from tests.containerd.differential.comparison import compare, unpack
from tests.containerd.differential.layers import Chain, Layer
from tests.containerd.differential.listing import listing, unpacked
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference
from tests.containerd.differential.strategies import chains

EXAMPLES = int(os.environ.get("IMAGEPREPULL_EXAMPLES", "500"))
NIGHTLY = "IMAGEPREPULL_EXAMPLES" in os.environ


def is_emptied_twice(bottom: Layer) -> bool:
    """Whether layer 0 may mark a directory as opaque twice: 1.6 walks it each time, 2.x and we once."""
    return unpacked(bottom.blob).count(b".wh..wh..opq") > 1


@settings(
    max_examples=EXAMPLES,
    derandomize=not NIGHTLY,
    database=None,
    # Searching for larger trees runs through thousands of examples that nobody counts.
    phases=[phase for phase in Phase if NIGHTLY or phase is not Phase.target],
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
        if version == "1.6" and is_emptied_twice(chain[0]):
            continue
        found += [f"{version}: {line}" for line in compare(ours, outcomes)]
    for layer in chain if found else ():
        note(listing(layer))
    assert found == []
