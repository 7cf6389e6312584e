from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from imageprepull.agent.losses import follow_losses
from imageprepull.runtime.errors import Unavailable


@dataclass
class FakeEvent:
    namespace: str
    topic: str = "/images/delete"
    subject: str = ""


async def test_a_swarm_is_told_once_and_a_lost_subscription_is_renewed_and_told() -> None:
    told = asyncio.Queue[str]()
    subscriptions = 0
    go_on = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        nonlocal subscriptions
        subscriptions += 1
        assert 'topic=="/images/delete"' in filters
        if subscriptions > 1:
            await asyncio.Event().wait()
        for _ in range(50):
            yield FakeEvent("k8s.io")
        yield FakeEvent("moby")
        await go_on.wait()
        raise Unavailable("subscribe", "connection lost")

    task = asyncio.create_task(
        follow_losses(
            subscribe, lambda _: told.put_nowait("loss"), namespace="k8s.io", settle=0.02, reconnect=0.01
        )
    )
    async with asyncio.timeout(30):
        await told.get()
        await asyncio.sleep(0.05)
        assert told.empty()
        go_on.set()
        await told.get()
    task.cancel()
    await asyncio.wait([task])


async def test_other_namespaces_are_nobodys_loss() -> None:
    told: list[str] = []
    heard = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        yield FakeEvent("moby")
        heard.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        follow_losses(subscribe, lambda _: told.append("loss"), namespace="k8s.io", settle=0, reconnect=60)
    )
    await heard.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert told == []


async def test_containers_that_go_free_images_and_lose_none() -> None:
    told: list[str] = []
    freed = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        assert 'topic=="/containers/delete"' in filters
        for _ in range(3):
            yield FakeEvent("k8s.io", "/containers/delete")
        await asyncio.Event().wait()

    def on_freed() -> None:
        told.append("freed")
        freed.set()

    task = asyncio.create_task(
        follow_losses(
            subscribe, lambda _: told.append("loss"), on_freed, namespace="k8s.io", settle=0.01, reconnect=60
        )
    )
    async with asyncio.timeout(30):
        await freed.wait()
    task.cancel()
    await asyncio.wait([task])
    assert told == ["freed"]


async def test_changed_records_are_told_by_name_and_a_swarm_once() -> None:
    told: list[object] = []
    heard = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        assert 'topic=="/images/update"' in filters
        for name in ("a/b:1", "a/c:1", "a/b:1"):
            yield FakeEvent("k8s.io", "/images/update", name)
        yield FakeEvent("moby", "/images/update", "a/d:1")
        await asyncio.Event().wait()

    def on_changed(names: Collection[str]) -> None:
        told.append(sorted(names))
        heard.set()

    task = asyncio.create_task(
        follow_losses(
            subscribe,
            lambda _: told.append("loss"),
            on_changed=on_changed,
            namespace="k8s.io",
            settle=0.01,
            reconnect=60,
        )
    )
    async with asyncio.timeout(30):
        await heard.wait()
    task.cancel()
    await asyncio.wait([task])
    assert told == [["a/b:1", "a/c:1"]]


async def test_a_blob_that_somebody_deletes_is_a_loss() -> None:
    told = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        assert 'topic=="/content/delete"' in filters
        yield FakeEvent("k8s.io", "/content/delete")
        await asyncio.Event().wait()

    task = asyncio.create_task(
        follow_losses(subscribe, lambda _: told.set(), namespace="k8s.io", settle=0, reconnect=60)
    )
    async with asyncio.timeout(30):
        await told.wait()
    task.cancel()
    await asyncio.wait([task])


async def test_a_swarm_is_told_by_what_was_deleted_and_after_a_gap_nobody_knows() -> None:
    told = asyncio.Queue[list[str]]()
    go_on = asyncio.Event()

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        if go_on.is_set():
            await asyncio.Event().wait()
        yield FakeEvent("k8s.io", "/images/delete", "a/b:1")
        yield FakeEvent("k8s.io", "/content/delete", "sha256:1")
        yield FakeEvent("k8s.io", "/images/update", "a/c:1")
        yield FakeEvent("k8s.io", "/containers/delete")
        yield FakeEvent("k8s.io", "/snapshot/remove", "sha256:2")
        yield FakeEvent("moby", "/content/delete", "sha256:3")
        await go_on.wait()
        raise Unavailable("subscribe", "connection lost")

    task = asyncio.create_task(
        follow_losses(
            subscribe,
            lambda lost: told.put_nowait(sorted(lost)),
            namespace="k8s.io",
            settle=0.01,
            reconnect=0.01,
        )
    )
    async with asyncio.timeout(30):
        assert await told.get() == ["a/b:1", "sha256:1", "sha256:2"]
        go_on.set()
        assert await told.get() == [], "some may have been missed"
    task.cancel()
    await asyncio.wait([task])


async def test_after_a_gap_containers_may_have_gone_as_well() -> None:
    told = asyncio.Queue[str]()
    subscriptions = 0

    async def subscribe(filters: Sequence[str]) -> AsyncIterator[FakeEvent]:
        nonlocal subscriptions
        subscriptions += 1
        if subscriptions > 1:
            await asyncio.Event().wait()
        yield FakeEvent("moby")
        raise Unavailable("subscribe", "connection lost")

    task = asyncio.create_task(
        follow_losses(
            subscribe,
            lambda _: told.put_nowait("loss"),
            lambda: told.put_nowait("freed"),
            namespace="k8s.io",
            settle=0.01,
            reconnect=0.01,
        )
    )
    async with asyncio.timeout(30):
        assert sorted([await told.get(), await told.get()]) == ["freed", "loss"]
    task.cancel()
    await asyncio.wait([task])
