"""The schema's bounds on what operator and agent write. No I/O.

One item or one character too many makes the API server reject the whole status, so whoever builds a status cuts by
these numbers. tests/unit/test_resources_bounds.py holds them against the CRDs.
"""

from __future__ import annotations

REFERENCE = 512
"""Characters of an image reference."""
DIGEST = 160
REASON = 128
MESSAGE = 1024
"""Characters of a message of an image or failure."""
CONDITION_MESSAGE = 4096
NONCE = 64
VERSION = 64
HOST = 261
"""Characters of a registry's host with its port."""
OWNER = 360
"""Characters of `namespace/name/uid` of an ImagePrepull."""

FAILURES = 10
SKIPPED = 10
CONDITIONS = 16
SPEC_IMAGES = 64
"""Images that one ImagePrepull may name."""
IMAGES = 256
"""Images of one NodePrepull, and of any list of images in a status."""
OWNERS = 64
PLATFORMS = 8
LAYERS = 256
NODE_DETAILS = 1000
SOURCE_HOSTS = 16
CAPABILITIES = 32
RESOLVES = 64
REGISTRIES = 64
STRAY_PINS = 32


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` characters; an ellipsis shows that something is missing."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
