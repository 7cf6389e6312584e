"""Which kubelets pay no heed to pins. Pure; `nodes` asks it for every Node.

They ask the runtime which images are pinned and drop the answer on its way to the image garbage collection:
kubernetes/kubernetes#119986, fixed in 1.29 and in the patch releases below. Before 1.23 they don't ask at all.
"""

from __future__ import annotations

import re

_FIXED = {25: 14, 26: 9, 27: 6, 28: 2}
"""The first patch release of a minor one that has the fix (kubernetes/kubernetes#120053 to #120056)."""
_VERSION = re.compile(r"v?1\.(\d+)\.(\d+)(?:[-+].*)?")


def ignores_pins(version: str) -> bool:
    """Whether a kubelet of this version, as in a Node's `nodeInfo`, removes pinned images. Not of one nobody can read."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return False
    minor, patch = int(found[1]), int(found[2])
    return minor < min(_FIXED) or patch < _FIXED.get(minor, 0)
