from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.kube.cache import Change, Document, Key, key_of, replace_all, take_event, went_back
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError, ApiUnreachable
from imageprepull.kube.informer import Informer, Timings
from imageprepull.kube.kinds import NODES
from tests.unit.fake_api_server import FakeApiServer, Fault, serve, status

QUICK = Timings(silence=5, relist_jitter=0.01, backoff_base=0.01, backoff_cap=0.02)


class Seen:
    """The changes of an informer; `until` waits for a state of them, woken by each."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.woken = asyncio.Event()

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        self.woken.set()

    def lines(self) -> list[str]:
        return [
            f"{c.type} {c.object['metadata']['name']} {'seen' if c.witnessed else 'found'}"
            for c in self.changes
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.woken.clear()
                await self.woken.wait()


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with serve() as running:
        yield running


@asynccontextmanager
async def following(
    server: FakeApiServer, timings: Timings = QUICK, field_selector: str = "", resync: float = 0
) -> AsyncIterator[tuple[Informer, Seen]]:
    seen = Seen()
    async with ApiClient(server.access(), timeout=2) as api:
        informer = Informer(
            api, NODES, on_change=seen, timings=timings, field_selector=field_selector, resync=resync
        )
        task = asyncio.create_task(informer.run())
        try:
            async with asyncio.timeout(30):
                await informer.synced.wait()
            yield informer, seen
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()


async def test_first_the_list_then_the_events(server: FakeApiServer) -> None:
    await server.put("a")
    async with following(server) as (informer, seen):
        await server.put("b")
        await server.put("a", changed=True)
        await server.remove("b")
        await seen.until(lambda: len(seen.changes) == 4)
        assert seen.lines() == ["added a found", "added b seen", "modified a seen", "deleted b seen"]
        assert list(informer.cache) == [("", "a")]
        assert informer.cache["", "a"]["changed"] is True


async def test_after_a_compaction_the_difference_is_told_as_not_witnessed(server: FakeApiServer) -> None:
    for name in ("stays", "goes", "changes", "reborn"):
        await server.put(name)
    async with following(server) as (informer, seen):
        seen.changes.clear()
        del server.objects["", "goes"]
        server.objects["", "changes"] = {
            "metadata": {"name": "changes", "uid": "uid-changes", "resourceVersion": "150"}
        }
        server.objects["", "reborn"] = {
            "metadata": {"name": "reborn", "uid": "other", "resourceVersion": "151"}
        }
        await server.compact()
        await seen.until(lambda: len(seen.changes) == 4)
        assert seen.lines() == [
            "deleted goes found",
            "deleted reborn found",
            "modified changes found",
            "added reborn found",
        ]
        assert {key[1] for key in informer.cache} == {"stays", "changes", "reborn"}


async def test_an_error_event_410_lists_anew(server: FakeApiServer) -> None:
    async with following(server) as (_, seen):
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        await server.error_event(410, "Expired")
        await server.put("b")
        await seen.until(lambda: len(seen.changes) == 2)
        assert server.methods().count("GET") == 2


async def test_a_lost_watch_goes_on_from_its_version_without_a_list(server: FakeApiServer) -> None:
    async with following(server) as (_, seen):
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        server.watch_mode = "torn"
        await server.error_event(500, "InternalError")
        server.watch_mode = "normal"
        await server.remove("a")
        await seen.until(lambda: len(seen.changes) == 2)
        assert seen.lines() == ["added a seen", "deleted a seen"]
        assert server.methods().count("GET") == 1


async def test_a_torn_line_is_not_taken_for_an_event(server: FakeApiServer) -> None:
    await server.put("a")
    server.watch_mode = "torn"
    async with following(server) as (informer, seen):
        await server.until_asked("WATCH", 3)
        assert "not JSON" in informer.sight.problem
        server.watch_mode = "normal"
        await server.put("b")
        await seen.until(lambda: len(seen.changes) == 2)
        assert informer.sight.problem == ""


async def test_a_silent_watch_is_replaced(server: FakeApiServer) -> None:
    server.watch_mode = "silent"
    timings = Timings(silence=0.05, relist_jitter=0.01, backoff_base=0.01, backoff_cap=0.02)
    async with following(server, timings) as (_, seen):
        await server.until_asked("WATCH", 2)
        server.watch_mode = "normal"
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)


async def test_a_bookmark_moves_the_version_from_which_a_watch_goes_on(server: FakeApiServer) -> None:
    async with following(server) as (_, seen):
        await server.bookmark()
        bookmarked = str(server.version)
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        last = str(server.version)
        await server.error_event(500, "InternalError")
        await server.until_asked("WATCH", 2)
        assert server.requests[-1].query["resourceVersion"] == last > bookmarked


async def test_a_list_that_fails_is_repeated_and_retry_after_is_obeyed(server: FakeApiServer) -> None:
    await server.put("a")
    server.faults += [
        Fault("GET", 500, status(500, "InternalError")),
        Fault("GET", 429, status(429, "TooManyRequests"), {"Retry-After": "1"}),
    ]
    began = asyncio.get_running_loop().time()
    async with following(server) as (informer, _):
        assert asyncio.get_running_loop().time() - began >= 1
        assert list(informer.cache) == [("", "a")]


async def test_one_object_is_followed_by_name(server: FakeApiServer) -> None:
    async with following(server, field_selector="metadata.name=mine") as (informer, seen):
        await server.put("other")
        await server.put("mine")
        await seen.until(lambda: len(seen.changes) == 1)
        assert list(informer.cache) == [("", "mine")]


async def test_a_resync_is_a_real_list(server: FakeApiServer) -> None:
    await server.put("a")
    async with following(server, resync=0.05) as (_, seen):
        del server.objects["", "a"]  # behind the watch's back, as a lost event would look.
        await seen.until(lambda: "deleted a found" in seen.lines())


async def test_who_starts_over_has_a_new_list_before_it_is_synced_again(server: FakeApiServer) -> None:
    await server.put("a")
    async with following(server) as (informer, seen):
        await server.until_asked("WATCH", 1)
        # An old backup: the open watch will never say that "a" is gone.
        server.objects.clear()
        server.version = 7
        informer.start_over()
        assert not informer.synced.is_set()
        async with asyncio.timeout(30):
            await informer.synced.wait()
        assert (seen.lines()[1:], informer.version, informer.newest) == (["deleted a found"], "7", 7)
        await server.put("b")
        await seen.until(lambda: "added b seen" in seen.lines())


async def test_a_watch_that_closes_at_once_is_not_asked_in_a_tight_loop(server: FakeApiServer) -> None:
    server.faults += [Fault("WATCH", 200, "") for _ in range(100)]
    slow = Timings(backoff_base=0.1, backoff_cap=60)
    async with following(server, slow):
        await server.until_asked("WATCH", 1)
        await asyncio.sleep(0.3)
        assert 1 <= server.methods().count("WATCH") <= 4


async def test_a_failing_listener_is_not_swallowed(server: FakeApiServer) -> None:
    await server.put("a")

    def fail(_: Change) -> None:
        raise KeyError("defect")

    async with ApiClient(server.access()) as api:
        with pytest.raises(KeyError, match="defect"):
            await Informer(api, NODES, on_change=fail).run()


def documents() -> st.SearchStrategy[list[Document]]:
    one = st.builds(
        lambda name, uid, version: {
            "metadata": {"name": name, "uid": f"{name}-{uid}", "resourceVersion": str(version)}
        },
        st.sampled_from("abcd"),
        st.integers(0, 1),
        st.integers(0, 3),
    )
    return st.lists(one, max_size=4, unique_by=lambda d: d["metadata"]["name"])


def replay(cache: dict[str, Document], changes: list[Change]) -> Iterator[dict[str, Document]]:
    """What somebody who only reads changes believes, by uid: no uid is ever added twice or deleted unknown."""
    for change in changes:
        uid = change.object["metadata"]["uid"]
        assert (uid in cache) == (change.type != "added")
        if change.type == "deleted":
            del cache[uid]
        else:
            cache[uid] = change.object
        yield cache


@given(st.lists(documents(), min_size=1, max_size=5))
def test_changes_of_lists_add_up_to_the_last_list(lists: list[list[Document]]) -> None:
    cache: dict[Key, Document] = {}
    believed: dict[str, Document] = {}
    for found in lists:
        changes = replace_all(cache, found)
        for _ in replay(believed, changes):
            pass
        assert cache == {key_of(d): d for d in found}
        assert believed == {d["metadata"]["uid"]: d for d in found}
        assert not any(change.witnessed for change in changes)
    assert replace_all(cache, lists[-1]) == []


@given(documents(), st.lists(st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), documents())))
def test_changes_of_events_add_up_to_the_cache(
    first: list[Document], events: list[tuple[str, list[Document]]]
) -> None:
    cache: dict[Key, Document] = {}
    believed: dict[str, Document] = {}
    for _ in replay(believed, replace_all(cache, first)):
        pass
    for kind, found in events:
        for document in found:
            for _ in replay(believed, take_event(cache, kind, document)):
                pass
    assert believed == {d["metadata"]["uid"]: d for d in cache.values()}


def test_the_same_version_of_another_history_is_another_object() -> None:
    """A restored backup counts on from its own version, over those that were seen before."""
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "7"}
    known: Document = {"metadata": metadata, "spec": {"images": ["of the lost history"]}}
    found: Document = {"metadata": metadata, "spec": {"images": []}}
    cache = {("", "n1"): known}
    assert [change.type for change in replace_all(cache, [found])] == ["modified"]
    assert cache == {("", "n1"): found}
    assert not replace_all(cache, [found | {"apiVersion": "v1", "kind": "Node"}]), (
        "a list does not name the kind"
    )


def test_the_deletion_of_an_earlier_life_is_ignored() -> None:
    cache: dict[Key, Document] = {}
    new = {"metadata": {"name": "a", "uid": "2", "resourceVersion": "9"}}
    replace_all(cache, [new])
    assert take_event(cache, "DELETED", {"metadata": {"name": "a", "uid": "1", "resourceVersion": "8"}}) == []
    assert cache == {("", "a"): new}


def named(name: str, version: int, uid: str = "") -> Document:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}}


@pytest.mark.parametrize(
    ("answer", "stands"),
    [(named("a", 9), 10), (named("a", 10), 10), (named("a", 11), 11), (named("a", 101, "a newer life"), 101)],
)
async def test_an_answer_that_the_watch_has_overtaken_does_not_put_the_older_object_back(
    server: FakeApiServer, answer: Document, stands: int
) -> None:
    """Others may write before the answer to a write of ours is read."""
    server.objects["", "a"] = named("a", 10)
    async with following(server) as (informer, seen):
        informer.answered(answer)
        assert informer.cache["", "a"]["metadata"]["resourceVersion"] == str(stands)
        assert len(seen.changes) == (1 if stands == 10 else 2 if stands == 11 else 3)
        informer.read(named("a", 3))
        assert informer.cache["", "a"]["metadata"]["resourceVersion"] == "3", "what is read now is there now"
        informer.missing(("", "a"))
        assert (informer.cache, seen.lines()[-1]) == ({}, "deleted a found")


@pytest.mark.parametrize("anew", [False, True])
async def test_the_answer_to_a_write_does_not_bring_back_what_was_deleted_since(
    server: FakeApiServer, anew: bool
) -> None:
    """No event would ever tell of its end again."""
    async with following(server) as (informer, seen):
        answer = await server.put("a", uid="first life")
        await server.remove("a")
        await (server.put("a", uid="second life") if anew else server.bookmark())
        await seen.until(lambda: len(seen.changes) == 2 + anew)
        informer.answered(answer)
        assert [one["metadata"]["uid"] for one in informer.cache.values()] == ["second life"] * anew
        assert len(seen.changes) == 2 + anew


async def test_a_list_tells_what_only_an_answer_had_changed(server: FakeApiServer) -> None:
    """A backup was restored, and the object is again as it was before our write: for the watch it is as ever."""
    await server.put("a")
    async with following(server) as (informer, seen):
        informer.answered(named("a", 4711) | {"changed": True})
        informer.answered(named("b", 4712))
        assert informer.newest == 4712
        assert seen.lines()[1:] == ["modified a found", "added b found"]
        informer.start_over()
        async with asyncio.timeout(30):
            await informer.synced.wait()
        assert seen.lines()[3:] == ["deleted b found", "modified a found"]
        assert "changed" not in informer.cache["", "a"]
        assert informer.newest == server.version


@pytest.mark.parametrize("later", [1, 0])
async def test_a_list_that_was_under_way_takes_no_answer_back(server: FakeApiServer, later: int) -> None:
    await server.put("a")
    seen = Seen()
    async with ApiClient(server.access(), timeout=2) as api:
        informer = Informer(api, NODES, on_change=seen, timings=QUICK)
        listed = api.list

        async def slow(*arguments: Any, **more: Any) -> tuple[list[Document], str]:
            found, version = await listed(*arguments, **more)
            informer.answered(named("b", int(version) + later))
            return found, version

        api.list = slow  # type: ignore[method-assign]
        task = asyncio.create_task(informer.run())
        async with asyncio.timeout(30):
            await informer.synced.wait()
        task.cancel()
        await asyncio.wait([task])
    assert {key[1] for key in informer.cache} == ({"a", "b"} if later else {"a"})


async def test_a_lost_connection_is_remembered_until_the_next_list(server: FakeApiServer) -> None:
    async with following(server) as (informer, seen):
        server.watch_mode = "torn"
        await server.error_event(500, "InternalError")
        server.watch_mode = "normal"
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        assert informer.sight.broken, "it follows again, from a version that a restored backup may not know"
        informer.start_over()
        async with asyncio.timeout(30):
            await informer.synced.wait()
        broken = informer.sight.broken
    assert not broken


@pytest.mark.parametrize(
    ("mode", "server_timeout", "broken"), [("brief", 300, True), ("brief", 1, False), ("closed", 300, False)]
)
async def test_a_watch_that_is_closed_before_its_time_is_a_lost_connection_however_politely(
    server: FakeApiServer, mode: str, server_timeout: float, broken: bool
) -> None:
    """As an API server closes all when it goes, or when its etcd has: the next may be found at once, and as it was.

    Where none ever lasts, it is no sign of that, and nobody must list for each.
    """
    server.watch_mode = mode
    timings = Timings(server_timeout=server_timeout, backoff_base=0.01)
    async with following(server, timings) as (informer, _):
        await server.until_asked("WATCH", 3)
        assert (informer.sight.broken, informer.sight.problem) == (broken, "")
        assert (informer.sight.regained == inf) is broken


@pytest.mark.parametrize(("early", "lost"), [(0.1, True), (1.0, False)])
async def test_nor_has_one_to_say_a_word_before_unless_it_is_closed_at_once(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch, early: float, lost: bool
) -> None:
    """What happens while the next one is waited for, nobody sees: a backup may be restored."""
    monkeypatch.setattr("imageprepull.kube.informer.EARLY", early)
    server.watch_mode = "quiet"
    async with following(server, Timings(backoff_base=0.01)) as (informer, _):
        await server.until_asked("WATCH", 2)
        assert (informer.sight.broken, informer.sight.regained == inf) == (lost, lost)
        assert not informer.sight.problem


async def relisted(informer: Informer) -> float:
    """When it was, at the earliest."""
    before = time.monotonic()
    informer.start_over()
    assert informer.sight.regained == inf
    async with asyncio.timeout(30):
        await informer.synced.wait()
    return before


async def test_from_when_nothing_is_known_of_a_loss_any_more(server: FakeApiServer) -> None:
    """That it is followed again is not enough: events go on from a version that a restored backup may not know."""
    async with following(server) as (informer, seen):
        assert informer.sight.regained == -inf
        await server.until_asked("WATCH", 1)
        server.faults += [Fault("WATCH", 503, "") for _ in range(10_000)]
        await server.error_event(500, "InternalError")
        await server.until_asked("WATCH", 3)
        assert informer.sight.regained == inf
        server.faults.clear()
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        assert informer.sight.regained == inf
        before = await relisted(informer)
        assert before <= informer.sight.regained <= time.monotonic()


@pytest.mark.parametrize("code", [403, 429, 500, 503])
async def test_a_watch_that_is_refused_for_good_is_no_loss_until_one_is_not(
    server: FakeApiServer, code: int
) -> None:
    """It must not keep everything from being written. What was there in between, nobody has seen."""
    async with following(server) as (informer, seen):
        await server.until_asked("WATCH", 1)
        server.faults += [Fault("WATCH", code, "") for _ in range(10_000)]
        await server.error_event(500, "InternalError")
        await server.until_asked("WATCH", 3)
        assert (informer.sight.regained, informer.sight.answered_to) == (inf, True), "it was watched before"
        await relisted(informer)
        asked = len(server.faults)
        async with asyncio.timeout(30):
            while len(server.faults) > asked - 3:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0)
        assert informer.sight.broken
        assert informer.sight.regained < inf
        server.faults.clear()
        await server.put("a")
        await seen.until(lambda: len(seen.changes) == 1)
        assert informer.sight.regained == inf
        # What was refused before a list says nothing of what is after it.
        informer.sight._refused = True
        await relisted(informer)
        await server.put("b")
        await seen.until(lambda: len(seen.changes) == 2)
        assert informer.sight.regained < inf


@pytest.mark.parametrize(
    ("listed", "error", "lost"),
    [
        (True, ApiUnreachable("connection refused"), True),
        (True, ApiError(503, "ServiceUnavailable", ""), False),
        (False, ApiError(503, "ServiceUnavailable", ""), True),
    ],
)
async def test_no_answer_to_a_first_watch_is_a_loss_and_a_refusal_is_none_once_all_is_listed(
    listed: bool, error: ApiError, lost: bool
) -> None:
    timings = Timings(backoff_base=0, backoff_cap=0)
    informer = Informer(cast("Any", None), NODES, on_change=lambda _: None, timings=timings)
    if listed:
        informer.synced.set()
    await informer._wait_out(error)
    assert (informer.sight.regained == inf, informer.sight.broken) == (lost, True)


async def test_a_history_that_is_compacted_is_a_loss_as_well(server: FakeApiServer) -> None:
    """As it is after a restore that lets the server count on from a higher version, for who knows lower ones."""
    async with following(server) as (informer, _):
        await server.until_asked("WATCH", 1)
        before = time.monotonic()
        await server.error_event(410, "Expired")
        await server.until_asked("WATCH", 2)
        assert before <= informer.sight.regained < inf


@pytest.mark.parametrize(
    ("version", "generation", "older"), [(5, 2, False), (4, 2, True), (9, 1, True), (6, 3, False)]
)
async def test_what_is_read_in_an_older_state_is_a_loss_as_well(
    version: int, generation: int, older: bool
) -> None:
    """The watch of a server that outlived a restore says nothing of it."""
    informer = Informer(cast("Any", None), NODES, on_change=lambda _: None)
    informer.read(named("a", 5) | {"metadata": named("a", 5)["metadata"] | {"generation": 2}})
    found = named("a", version)
    found["metadata"]["generation"] = generation
    informer.read(found)
    assert (informer.sight.regained == inf, informer.sight.broken) == (older, older)


def test_another_life_begins_to_count_anew() -> None:
    known, found = named("a", 5), named("a", 6, uid="anew")
    known["metadata"]["generation"], found["metadata"]["generation"] = 3, 1
    assert not went_back(known, found)


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_not_found_where_it_was_known_is_a_loss_as_well(known: bool) -> None:
    informer = Informer(cast("Any", None), NODES, on_change=lambda _: None)
    if known:
        informer.read(named("a", 5))
    informer.missing(("", "a"))
    assert (informer.sight.regained == inf) is known


async def test_a_list_of_an_older_state_is_a_loss_as_well(server: FakeApiServer) -> None:
    await server.put("a")
    async with following(server, resync=0.05) as (informer, _):
        server.version -= 50
        async with asyncio.timeout(30):
            while informer.sight.regained == -inf:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0)
        assert informer.version == str(server.version)
        assert (informer.sight.regained, informer.sight.broken) == (inf, False), (
            "the other kinds are not listed again yet"
        )
        await relisted(informer)
        assert informer.sight.regained < inf


async def test_the_newest_version_outlives_an_older_list(server: FakeApiServer) -> None:
    await server.put("a")
    async with following(server) as (informer, seen):
        await seen.until(lambda: len(seen.changes) == 1)
        heard = informer.newest
        informer._hear(str(heard + 5))
        informer._hear(str(heard))  # a backup was restored, and the watch ended with it.
        assert (informer.version, informer.newest) == (str(heard), heard + 5)
        informer.start_over()
        assert informer.newest == 0
