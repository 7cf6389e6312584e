from typing import Any, cast

import pytest

from imageprepull.controller.trust import CrdsMissing, Trust, crd_uid, object_missing
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError, ApiUnreachable, from_body


def crd(uid: str = "u", *, established: str = "True", deleting: bool = False) -> dict[str, Any]:
    metadata = {
        "name": "x",
        "uid": uid,
        **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}),
    }
    return {"metadata": metadata, "status": {"conditions": [{"type": "Established", "status": established}]}}


def test_a_crd_counts_while_it_is_established_and_stays() -> None:
    assert crd_uid(crd()) == "u"
    assert crd_uid(crd(established="False")) == ""
    assert crd_uid(crd(deleting=True)) == ""
    assert crd_uid({"metadata": {"uid": "u"}}) == ""


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (
            b'{"kind":"Status","reason":"NotFound","message":"imageprepulls.imageprepull.io \\"web\\" not found"}',
            True,
        ),
        (
            b'{"kind":"Status","reason":"NotFound","message":"the server could not find the requested resource"}',
            False,
        ),
        (b"404 page not found\n", False),
    ],
)
def test_only_the_objects_own_absence_counts(body: bytes, missing: bool) -> None:
    assert object_missing(from_body(body, status=404, request="GET", retry_after=None), "web") is missing


class FakeCrds:
    """FAKE API that serves the two CRDs from a list of answers, the last one for ever."""

    def __init__(self, *answers: dict[str, Any] | ApiError) -> None:
        self.answers = list(answers)

    async def get(self, kind: Any, name: str) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ApiError):
            raise answer
        return answer


def trust(*answers: dict[str, Any] | ApiError) -> Trust:
    return Trust(cast("ApiClient", FakeCrds(*answers)))


async def test_it_waits_for_crds_over_outages() -> None:
    one = trust(ApiUnreachable("refused"), ApiError(404, "NotFound", ""), crd(established="False"), crd())
    await one.wait(1)
    assert await one.holds()


async def test_it_names_what_is_missing() -> None:
    with pytest.raises(CrdsMissing, match=r"nodeprepulls\.imageprepull\.io.*kubectl apply"):
        await trust(crd(), ApiError(404, "NotFound", "")).wait(0.05)


@pytest.mark.parametrize("later", [crd("other"), crd(deleting=True), ApiError(404, "NotFound", "")])
async def test_a_crd_that_changed_vouches_for_nothing_and_ends_the_process(
    later: dict[str, Any] | ApiError,
) -> None:
    one = trust(crd(), crd(), later)
    await one.wait(1)
    assert not await one.holds()
    with pytest.raises(CrdsMissing, match="starting over"):
        await one.guard(0.01)


async def test_an_api_server_that_does_not_answer_proves_nothing() -> None:
    one = trust(crd(), crd(), ApiUnreachable("refused"))
    await one.wait(1)
    with pytest.raises(ApiError):
        await one.holds()


async def test_what_an_older_crd_lacks_is_noted_and_forgotten_when_it_is_replaced() -> None:
    def with_fields(*names: str) -> dict[str, Any]:
        spec: dict[str, Any] = {"properties": {name: {} for name in names}}
        schema = {"openAPIV3Schema": {"properties": {"spec": spec}}}
        return crd() | {"spec": {"versions": [{"name": "v1alpha1", "schema": schema}]}}

    fields = ["resolve", "registries", "kubeletWithoutPins"]
    older, newer = with_fields(*fields[:2]), with_fields(*fields)
    found = trust(older, older, newer)
    await found.wait(1)
    assert ("kubeletWithoutPins",) in found.lacking
    assert ("registries",) not in found.lacking
    await found.holds()
    assert ("kubeletWithoutPins",) not in found.lacking
