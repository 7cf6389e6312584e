"""Which fields of an ImagePrepull this version does not act on yet.

The schema has all fields from the start, so that objects written today stay valid. What is not acted on is never
ignored silently: when such a field differs from its default, the operator refuses the object (condition Stalled)
and names field and reason. This is the one place that lists them; a test lets the list only shrink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imageprepull.resources.imageprepull import (
    CompletionMode,
    ImagePrepullSpec,
    PullPolicy,
    Rollout,
)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field in use that is not acted on. `field` is its path (`spec.rollout.seedNodes`), `reason` a clause."""

    field: str
    reason: str

    def __str__(self) -> str:
        """One line for a condition's message."""
        return f"{self.field} is not acted on yet: {self.reason}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A field, whether a spec uses it (differs from the default), and what to do instead."""

    field: str
    used: Callable[[ImagePrepullSpec], bool]
    reason: str


_DEFAULT = ImagePrepullSpec()
_ROLLOUT = Rollout()

RULES: tuple[Rule, ...] = (
    Rule(
        "spec.images[].pullPolicy",
        lambda spec: any(entry.pull_policy is PullPolicy.ALWAYS for entry in spec.images),
        "tags are resolved once per change of the object; leave it out or use IfNotPresent",
    ),
    Rule("spec.imagesFrom", lambda spec: bool(spec.images_from), "list the images in spec.images"),
    Rule(
        "spec.imagePullSecrets",
        lambda spec: bool(spec.image_pull_secrets),
        "registries are asked without credentials; leave it out",
    ),
    Rule(
        "spec.serviceAccountName",
        lambda spec: spec.service_account_name != _DEFAULT.service_account_name,
        'registries are asked without credentials; leave it out or use "default"',
    ),
    Rule(
        "spec.completionMode",
        lambda spec: spec.completion_mode is not CompletionMode.CONTINUOUS,
        "create the object anew with Continuous, and delete it when it has served",
    ),
    Rule(
        "spec.rollout.maxParallelNodes",
        lambda spec: spec.rollout.max_parallel_nodes is not None,
        "the number of nodes that pull at the same time has no cap of its own; leave it out",
    ),
    Rule(
        "spec.rollout.seedNodes",
        lambda spec: spec.rollout.seed_nodes != _ROLLOUT.seed_nodes,
        "no nodes go first; leave it out",
    ),
    Rule(
        "spec.rollout.maxFailedNodes",
        lambda spec: spec.rollout.max_failed_nodes != _ROLLOUT.max_failed_nodes,
        f'leave it out or use "{_ROLLOUT.max_failed_nodes}"',
    ),
    Rule(
        "spec.limits.maxDownloadBytesPerSecond",
        lambda spec: spec.limits.max_download_bytes_per_second is not None,
        "downloads have no rate limit; leave it out",
    ),
    Rule(
        "spec.backoffLimit",
        lambda spec: spec.backoff_limit != _DEFAULT.backoff_limit,
        f"leave it out or use {_DEFAULT.backoff_limit}",
    ),
    Rule(
        "spec.activeDeadlineSeconds",
        lambda spec: spec.active_deadline_seconds is not None,
        "objects have no deadline; leave it out",
    ),
    Rule(
        "spec.refreshIntervalSeconds",
        lambda spec: spec.refresh_interval_seconds is not None,
        "tags are resolved once per change of the object; leave it out",
    ),
    Rule(
        "spec.ttlSecondsAfterFinished",
        lambda spec: spec.ttl_seconds_after_finished is not None,
        "objects are not deleted by themselves; leave it out",
    ),
    Rule("spec.suspend", lambda spec: spec.suspend, "delete the object instead; images that nodes hold stay"),
)


def unsupported(spec: ImagePrepullSpec) -> list[Unsupported]:
    """The fields of `spec` that differ from their defaults and are not acted on, in the schema's order."""
    return [Unsupported(rule.field, rule.reason) for rule in RULES if rule.used(spec)]
