"""Whether the CRDs have a place for all that an order needs on its way to a node and back.

A field that a CRD lacks is lost without a word: the operator leaves it out, or the API server drops it. The order itself
is an annotation and is taken all the same, so that no answer to it tells. Whoever may log in may read the schemas, as
`kubectl explain` does; the CRDs themselves are not for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imageprepull.cli.waiting import NothingToDo
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import Kind
from imageprepull.resources import GROUP, VERSION

Needs = Mapping[Kind, Sequence[str]]
"""Fields by kind, as `spec.images.repair`; the items of a list have the list's name."""


class OlderCrds(NothingToDo):
    """A CRD lacks what an order needs; the message says which and how to upgrade it."""


async def check_fields(api: ApiClient, needs: Needs) -> None:
    """Make sure that no field which an order needs is lost. Where the schemas cannot be read, time will tell.

    Raises:
        OlderCrds: one would be.
    """
    try:
        schemas = await api.schemas(GROUP, VERSION)
    except ApiError:
        return
    lost = [
        f"{kind.plural}.{kind.group} lacks {path}"
        for kind, paths in needs.items()
        for schema in _of(kind, schemas)
        for path in paths
        if not _declares(schema, path.split("."))
    ]
    if lost:
        raise OlderCrds(
            f"nothing would come of it, since the CRDs are older than this command: {', '.join(lost)}; upgrade them with "
            "`helm upgrade`, or where that leaves them alone (crds.enabled=false) with `kubectl apply -f crds/` of the "
            "operator's version"
        )


def _of(kind: Kind, schemas: Mapping[str, Any]) -> Iterator[Any]:
    meant = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    return (
        schema for schema in schemas.values() if meant in schema.get("x-kubernetes-group-version-kind", ())
    )


def _declares(schema: Mapping[str, Any], path: Sequence[str]) -> bool:
    for name in path:
        properties = schema.get("items", schema).get("properties")
        if properties is None:
            return True  # whatever that is, it is no older version of ours.
        if name not in properties:
            return False
        schema = properties[name]
    return True
