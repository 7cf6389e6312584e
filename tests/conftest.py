"""For all tests: nothing of hypothesis is timed, neither examples nor their making: other work is no failure.

`make test` tries the same examples each time; `make test-nightly` sets IMAGEPREPULL_EXAMPLES and tries so many new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("IMAGEPREPULL_EXAMPLES", "")

settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not EXAMPLES,
    max_examples=int(EXAMPLES or 100),
)
settings.load_profile("untimed")
