"""A fake API server: one collection of objects, watch history, and faults on demand.

It knows nothing of kinds, schemas, permissions or selectors but `metadata.name`, and of patches it carries out what they
say of annotations. What the real one does is tested in
tests/cluster; here are the faults that a real one shows once a year.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from imageprepull.kube.access import ClusterAccess

Document = dict[str, Any]


def status(code: int, reason: str, message: str = "by order of the test") -> Document:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}


@dataclass
class Fault:
    """The answer to the next request whose `METHOD` (or WATCH) matches."""

    method: str
    code: int
    body: Document | str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeApiServer:
    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    history: list[tuple[int, str, Document]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    version: int = 100
    compacted: int = 0
    # normal, silent (accepts, then nothing), torn (half a line, then closed), closed, brief (a bookmark, then closed),
    # quiet (closed after a while without a word)
    watch_mode: str = "normal"
    page_token_expired: bool = False
    schemas: Document | None = None  # of the OpenAPI document
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""

    async def until_asked(self, method: str, times: int) -> None:
        async with asyncio.timeout(30), self.asked:
            await self.asked.wait_for(lambda: self.methods().count(method) >= times)

    def methods(self) -> list[str]:
        return ["WATCH" if "watch" in r.query else r.method for r in self.requests]

    async def put(
        self,
        name: str,
        *,
        uid: str = "",
        namespace: str = "",
        annotations: dict[str, str] | None = None,
        generation: int = 0,
        **fields: Any,
    ) -> Document:
        self.version += 1
        known = self.objects.get((namespace, name))
        metadata: Document = {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(self.version)}
        if annotations:
            metadata["annotations"] = annotations
        elif known and "annotations" in known["metadata"]:
            metadata["annotations"] = known["metadata"]["annotations"]
        if namespace:
            metadata["namespace"] = namespace
        if generation:
            metadata["generation"] = generation
        document = {"metadata": metadata, **fields}
        self.objects[namespace, name] = document
        await self.tell("MODIFIED" if known else "ADDED", document)
        return document

    async def annotate(self, name: str, annotations: dict[str, str | None], namespace: str = "") -> None:
        """As a merge patch does: None takes one away."""
        self.version += 1
        known = self.objects[namespace, name]
        merged = {**known["metadata"].get("annotations", {}), **annotations}
        metadata = {
            **known["metadata"],
            "resourceVersion": str(self.version),
            "annotations": {key: text for key, text in merged.items() if text is not None},
        }
        document = self.objects[namespace, name] = {**known, "metadata": metadata}
        await self.tell("MODIFIED", document)

    async def remove(self, name: str, namespace: str = "") -> None:
        self.version += 1
        document = self.objects.pop((namespace, name))
        metadata = {**document["metadata"], "resourceVersion": str(self.version)}
        await self.tell("DELETED", {**document, "metadata": metadata})

    async def bookmark(self) -> None:
        self.version += 1
        await self.tell("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    async def error_event(self, code: int, reason: str) -> None:
        await self.tell("ERROR", status(code, reason))

    async def tell(self, event: str, document: Document) -> None:
        async with self.changed:
            self.history.append((self.version, event, document))
            self.changed.notify_all()

    async def compact(self) -> None:
        """Forget history, so that a watch from before is answered with 410; open watches are cut."""
        async with self.changed:
            self.version += 1
            self.history.clear()
            self.compacted = self.version
            self.changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.json() if request.can_read_body else None)
        async with self.asked:
            self.asked.notify_all()
        method = "WATCH" if "watch" in request.query else request.method
        for fault in self.faults:
            if fault.method == method:
                self.faults.remove(fault)
                text = fault.body if isinstance(fault.body, str) else json.dumps(fault.body)
                return web.Response(status=fault.code, text=text, headers=fault.headers)
        if method == "WATCH":
            return await self.watch(request)
        if request.path.startswith("/openapi/") and self.schemas is not None:
            return web.json_response({"openapi": "3.0.0", "components": {"schemas": self.schemas}})
        if method == "GET" and request.path.rsplit("/", 1)[1] in COLLECTIONS:
            return self.collection(request)
        return await self.one(request, method)

    def collection(self, request: web.Request) -> web.StreamResponse:
        found = [o for o in self.objects.values() if selected(request, o)]
        metadata = {"resourceVersion": str(self.version)}
        limit = int(request.query.get("limit", "0"))
        start = int(request.query.get("continue", "0"))
        if start and self.page_token_expired:
            return web.json_response(status(410, "Expired"), status=410)
        if limit and len(found) > start + limit:
            metadata["continue"] = str(start + limit)
        return web.json_response(
            {"metadata": metadata, "items": found[start : start + limit] if limit else found}
        )

    async def one(self, request: web.Request, method: str) -> web.StreamResponse:
        name = request.path.rsplit("/", 1)[1]
        found = next((key for key in self.objects if key[1] == name), None)
        if method == "GET" and found is None:
            return web.json_response(status(404, "NotFound"), status=404)
        if method == "PATCH" and found is not None:
            annotations = self.bodies[-1].get("metadata", {}).get("annotations", {})
            if annotations:
                await self.annotate(name, annotations, found[0])
        known = self.objects[found] if found is not None else None
        return web.json_response(known or {"metadata": {"name": name}})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        if since < self.compacted:
            return web.json_response(status(410, "Expired"), status=410)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self.watch_mode in ("torn", "closed", "brief"):
            mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
            said = {"torn": '{"type":"MODIFIED","object":{"metad', "brief": json.dumps(mark) + "\n"}
            await response.write(said.get(self.watch_mode, "").encode())
            return response
        if self.watch_mode == "silent":
            await asyncio.Event().wait()
        if self.watch_mode == "quiet":
            await asyncio.sleep(0.2)
            return response
        while since >= self.compacted:
            fresh = [entry for entry in self.history if entry[0] > since or entry[1] == "ERROR"]
            for version, event, document in fresh:
                since = max(since, version)
                if event in ("BOOKMARK", "ERROR") or selected(request, document):
                    line = json.dumps({"type": event, "object": document}) + "\n"
                    await response.write(line.encode())
                if event == "ERROR":
                    self.history.remove((version, event, document))
                    return response
            async with self.changed:
                while self.version <= since and not self.ends_with_error():
                    await self.changed.wait()
        return response

    def ends_with_error(self) -> bool:
        return bool(self.history) and self.history[-1][1] == "ERROR"

    def access(self, token: str | None = None) -> ClusterAccess:
        return ClusterAccess(self.url, None, lambda: token)


COLLECTIONS = ("nodes", "configmaps", "nodeprepulls", "imageprepulls")


def selected(request: web.Request, document: Document) -> bool:
    selector = request.query.get("fieldSelector", "")
    return not selector or selector == f"metadata.name={document['metadata']['name']}"


@asynccontextmanager
async def serve() -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
