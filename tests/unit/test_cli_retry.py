"""What `kubectl image-prepull retry` waits for and says, and when it takes its annotation away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from imageprepull.cli.kubeconfig import Target
from imageprepull.cli.retry import NO_ANSWER, NothingToRetry, check_named, retry, take_away, verdict
from imageprepull.cli.waiting import BLOCKED, DONE, FAILED, INTERRUPTED, TIMED_OUT
from imageprepull.controller.retries import ANNOTATION, RetryOrder
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status

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


ANSWERS = [
    ({"nonce": "n1", "ready": 3}, DONE, "Ready on 3 nodes"),
    (
        {"nonce": "n1", "failed": 1, "exampleNode": "b", "reason": "NotFound"},
        FAILED,
        "failed again on 1 of 1 node, for example b: NotFound",
    ),
    (
        {"nonce": "n1", "blocked": 1, "exampleNode": "b", "reason": "DiskFull"},
        BLOCKED,
        "not now on 1 of 1 node, for example b: DiskFull",
    ),
]
STILL_THERE = f"the annotation {ANNOTATION} may still be there"
NEXT = "the next retry takes its place"


@asynccontextmanager
async def retrying(seconds: float = 0) -> AsyncIterator[tuple[FakeApiServer, asyncio.Task[int]]]:
    """A retry whose order has been given and which follows what comes of it."""
    async with serve() as server:
        await server.put("web", namespace="shop", spec={"images": [{"image": "web:1"}]})
        task = asyncio.create_task(retry(Target(server.access(), "shop"), "web", RetryOrder("n1"), seconds))
        try:
            await server.until_asked("WATCH", 1)
            yield server, task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def answer_with(server: FakeApiServer, answer: dict[str, Any]) -> None:
    spec = {"images": [{"image": "web:1"}]}
    await server.put("web", namespace="shop", spec=spec, status={"retry": answer})


def printed(capsys: pytest.CaptureFixture[str], code: int, said: str) -> str:
    """What was printed after the verdict, which has to be there as always."""
    out, err = capsys.readouterr()
    verdict_line = f"shop/web: {said}\n"
    assert out == ("" if code else verdict_line)
    assert code == DONE or err.startswith(verdict_line)
    return err.removeprefix(verdict_line)


@pytest.mark.parametrize(("answer", "code", "said"), ANSWERS)
async def test_a_refusal_to_take_the_annotation_away_does_not_change_the_verdict(
    answer: dict[str, Any], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with retrying() as (server, task):
        server.faults.append(Fault("PATCH", 403, status(403, "Forbidden", "you may not")))
        await answer_with(server, answer)
        async with asyncio.timeout(30):
            assert await task == code
    trouble = printed(capsys, code, said)
    assert trouble.startswith(f"warning: shop/web: {STILL_THERE}: PATCH ")
    assert trouble.endswith(f"403 Forbidden: you may not; {NEXT}\n")


@pytest.mark.parametrize(("answer", "code", "said"), ANSWERS)
async def test_a_time_that_runs_out_while_the_annotation_is_taken_away_does_not_change_the_verdict(
    answer: dict[str, Any],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def runs_out(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr("imageprepull.cli.retry.take_away", runs_out)
    async with retrying(600) as (server, task):
        await answer_with(server, answer)
        async with asyncio.timeout(30):
            assert await task == code
    assert printed(capsys, code, said) == (
        f"warning: shop/web: {STILL_THERE}: the time, 600 s, was over; {NEXT}\n"
    )


async def test_an_interruption_while_the_annotation_is_taken_away_comes_after_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def hangs(*_: Any) -> None:
        begun.set()
        await never.wait()

    monkeypatch.setattr("imageprepull.cli.retry.take_away", hangs)
    async with retrying() as (server, task):
        await answer_with(server, {"nonce": "n1", "ready": 3})
        async with asyncio.timeout(30):
            await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert printed(capsys, DONE, "Ready on 3 nodes") == (
        f"warning: shop/web: {STILL_THERE}: interrupted; {NEXT}\n"
    )


async def test_a_refusal_before_the_verdict_is_an_error_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serve() as server:
        with pytest.raises(ApiError, match="404"):
            await retry(Target(server.access(), "shop"), "web", RetryOrder("n1"), 0)
    assert capsys.readouterr() == ("", "")
