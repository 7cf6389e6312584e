"""What `kubectl image-prepull retry` waits for and says, and when it takes its annotation away."""

from __future__ import annotations

from typing import Any, cast

import pytest

from imageprepull.cli.retry import NO_ANSWER, NothingToRetry, check_named, take_away, verdict
from imageprepull.cli.waiting import BLOCKED, DONE, FAILED, INTERRUPTED, TIMED_OUT
from imageprepull.controller.retries import ANNOTATION, RetryOrder
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError

WEB = "docker.io/library/web:1"
ORDER = RetryOrder("n1", "", WEB)


def document(annotation: str = str(ORDER), **answer: Any) -> dict[str, Any]:
    metadata = {
        "name": "web",
        "namespace": "shop",
        "resourceVersion": "7",
        "annotations": {ANNOTATION: annotation},
    }
    return {"metadata": metadata, "status": {"retry": answer} if answer else {}}


def test_an_image_that_the_object_does_not_name_is_refused() -> None:
    named = [{"image": "web:1"}, {"image": "UPPER"}]
    check_named(named, "shop/web", WEB)
    check_named(named, "shop/web", "")
    with pytest.raises(NothingToRetry, match=r"shop/web does not name .*job:1; it names web:1"):
        check_named(named, "shop/web", "docker.io/library/job:1")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({}, None, NO_ANSWER),
        ({"nonce": "n0", "ready": 3}, None, NO_ANSWER),
        ({"nonce": "n1", "waiting": 2, "ready": 1}, None, "2 of 3 nodes in work"),
        ({"nonce": "n1", "ready": 3}, 0, "Ready on 3 nodes"),
        ({"nonce": "n1", "ready": 1}, 0, "Ready on 1 node"),
        (
            {
                "nonce": "n1",
                "ready": 1,
                "failed": 2,
                "exampleNode": "b",
                "exampleImage": WEB,
                "reason": "NotFound",
                "message": "404",
            },
            1,
            f"failed again on 2 of 3 nodes, for example b: {WEB}: NotFound: 404",
        ),
        (
            {"nonce": "n1", "failed": 1, "exampleNode": "b", "reason": "NotFound", "message": "404"},
            1,
            "failed again on 1 of 1 node, for example b: NotFound: 404",
        ),
        (
            {
                "nonce": "n1",
                "ready": 2,
                "blocked": 1,
                "exampleNode": "b",
                "exampleImage": WEB,
                "reason": "InsufficientDisk",
                "message": "54 MB needed, 50 MB free",
            },
            BLOCKED,
            f"not now on 1 of 3 nodes, for example b: {WEB}: InsufficientDisk: 54 MB needed, 50 MB free",
        ),
        (
            {
                "nonce": "n1",
                "failed": 1,
                "blocked": 2,
                "exampleNode": "b",
                "exampleImage": WEB,
                "reason": "NotFound",
                "message": "404",
            },
            FAILED,
            f"failed again on 1 of 3 nodes, for example b: {WEB}: NotFound: 404",
        ),
        (
            {"nonce": "n1", "waiting": 1, "blocked": 1, "reason": "InsufficientDisk"},
            None,
            "1 of 2 nodes in work",
        ),
        ({"nonce": "n1", "reason": "InvalidSpec", "message": "odd"}, 1, "InvalidSpec: odd"),
        ({"nonce": "n1"}, 1, f"nothing to retry: {WEB} is for no node"),
    ],
)
def test_it_waits_for_the_last_word_on_its_own_order(
    answer: dict[str, Any], code: int | None, said: str
) -> None:
    assert verdict(document(**answer), ORDER) == (code, said)


def test_each_outcome_has_an_exit_code_of_its_own() -> None:
    # 2 is argparse's, for a wrong call.
    assert len({DONE, FAILED, 2, TIMED_OUT, BLOCKED, INTERRUPTED}) == 6


def test_it_ends_when_another_order_has_taken_its_place() -> None:
    assert verdict(document("n2", nonce="n0"), ORDER) == (1, "another retry has taken this one's place")
    assert verdict(document("n2", nonce="n1", ready=1), ORDER)[0] == 0, "but for an answer that came before"


def test_an_order_that_was_taken_back_by_hand_has_no_successor() -> None:
    taken = document()
    del taken["metadata"]["annotations"]
    assert verdict(taken, ORDER) == (FAILED, "the order was taken away")
    taken["metadata"]["annotations"] = {"else": "x"}
    assert verdict(taken, ORDER) == (FAILED, "the order was taken away")


def test_an_order_without_an_answer_makes_think_of_an_older_crd() -> None:
    assert "is it running?" in NO_ANSWER
    assert "CRDs may be older than it" in NO_ANSWER
    assert "apply the files of crds/" in NO_ANSWER


class OneObject:
    """A FAKE API: one object, and somebody who writes it before each of our first `conflicts` writes."""

    def __init__(self, conflicts: int, annotation: str = str(ORDER)) -> None:
        self.conflicts = conflicts
        self.found = document(annotation)
        self.removed: list[dict[str, Any]] = []

    async def get(self, *_: Any) -> dict[str, Any]:
        return self.found

    async def merge_patch(self, kind: Any, name: str, body: dict[str, Any], *, namespace: str) -> None:
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError(409, "Conflict", "it has been modified")
        self.removed.append(body["metadata"])


async def test_the_annotation_is_taken_away_whoever_else_writes_meanwhile() -> None:
    api = OneObject(conflicts=2)
    await take_away(cast("ApiClient", api), document(), ORDER)
    assert api.removed == [{"resourceVersion": "7", "annotations": {ANNOTATION: None}}]


async def test_somebody_elses_order_is_left_alone() -> None:
    api = OneObject(conflicts=1, annotation="n2")
    await take_away(cast("ApiClient", api), document(), ORDER)
    await take_away(cast("ApiClient", api), document("n2"), ORDER)
    assert api.removed == []
