"""A thin API client on aiohttp: requests below, informer and the loops of agent and operator above.

It does not retry: who calls knows whether the request is still worth it. Every request has a deadline and every
failure is an `ApiError`. The official client is not used here because it costs an agent 17 MiB and its watch fails
on lines over 512 KiB.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from imageprepull import __version__
from imageprepull.kube.access import AccessError, ClusterAccess
from imageprepull.kube.errors import ApiError, ApiUnreachable, from_body, from_status
from imageprepull.kube.kinds import Kind

SUCCESSES = range(200, 300)
READ_BUFFER = 2**21
"""aiohttp refuses lines over twice this; an object may approach etcd's 1.5 MiB."""
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Document = dict[str, Any]
Documents = list[Document]


class ApiClient:
    """Requests to one API server; an async context manager that owns its connections.

    `timeout` is the deadline in seconds of every request but a watch. `user_agent` also becomes the field manager
    of merge patches, as the server takes the part before the slash.
    """

    def __init__(
        self, access: ClusterAccess, *, timeout: float = 30, user_agent: str = f"imageprepull/{__version__}"
    ) -> None:
        self._access = access
        self._timeout = timeout
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._access.ssl or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent, "Accept": "application/json"},
            read_bufsize=READ_BUFFER,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Document:
        """One object as etcd's quorum has it now (no resourceVersion is sent, so no cache answers)."""
        return await self._document("GET", kind.path(namespace, name))

    async def schemas(self, group: str, version: str) -> Document:
        """The OpenAPI v3 schemas of what a group serves in this version, by a name that means nothing here."""
        found = await self._document("GET", f"/openapi/v3/apis/{group}/{version}")
        return dict((found.get("components") or {}).get("schemas") or {})

    async def list(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
        metadata_only: bool = False,
    ) -> tuple[Documents, str]:
        """All objects by pages of `limit`, and the resourceVersion from which a watch continues.

        `metadata_only`: as PartialObjectMetadata, without spec and status.

        When the pages' snapshot is compacted in between (410), the list is taken once more, in one piece.
        """
        path = kind.path(namespace)
        query = selectors(label_selector, field_selector)
        accept = METADATA_ONLY if metadata_only else ""
        try:
            return await self._pages(path, query | {"limit": str(limit)}, accept)
        except ApiError as error:
            if not error.gone:
                raise
        return await self._pages(path, query, accept)

    async def _pages(self, path: str, query: dict[str, str], accept: str) -> tuple[Documents, str]:
        found: Documents = []
        while True:
            page = await self._document("GET", path, query=query, accept=accept)
            found += page.get("items") or []
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                return found, str(metadata.get("resourceVersion", ""))
            query = query | {"continue": token}

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        server_timeout: float = 300,
        silence: float = 70,
        on_open: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[tuple[str, Document]]:
        """Events after `resource_version`: ADDED, MODIFIED, DELETED, BOOKMARK. Ends when the server closes.

        Bookmarks come about once a minute, so `silence` seconds without a byte mean a connection that is dead
        but not closed. `on_open` is called when the server has accepted, which may be long before the first event.

        Raises:
            ApiError: refused, lost, silent, or an ERROR event (410 when the version is compacted).
        """
        path = kind.path(namespace)
        query = selectors(label_selector, field_selector) | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, int(server_timeout))),
        }
        request = f"WATCH {path}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=silence)
        try:
            async with self._send("GET", path, query=query, timeout=limits) as response:
                await raise_for_status(response, request)
                on_open()
                async for line in response.content:
                    if line.strip():
                        yield event_of(line, request)
        except TimeoutError as error:
            raise ApiUnreachable(
                f"silent for {silence:g} s", request=request, reason="WatchSilent"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(describe(error), request=request) from error

    async def create(self, kind: Kind, body: Document, *, namespace: str = "") -> Document:
        """POST a new object; `ApiError.already_exists` when its name is taken."""
        return await self._document("POST", kind.path(namespace), body=body)

    async def replace(
        self, kind: Kind, name: str, body: Document, *, namespace: str = "", subresource: str = ""
    ) -> Document:
        """PUT the whole object; with `metadata.resourceVersion` it is a compare-and-swap."""
        return await self._document("PUT", kind.path(namespace, name, subresource), body=body)

    async def delete(self, kind: Kind, name: str, *, namespace: str = "", uid: str = "") -> None:
        """Delete an object, if it still has that `uid` when one is given (409 otherwise)."""
        body: Document = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        await self._document("DELETE", kind.path(namespace, name), body=body)

    async def merge_patch(
        self, kind: Kind, name: str, body: Document, *, namespace: str = "", subresource: str = ""
    ) -> Document:
        """RFC 7386: lists are replaced whole, null removes a field, fields that the CRD lacks are dropped."""
        path = kind.path(namespace, name, subresource)
        return await self._document("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def apply(
        self,
        kind: Kind,
        name: str,
        body: Document,
        *,
        field_manager: str,
        namespace: str = "",
        force: bool = False,
    ) -> Document:
        """Server-side apply: creates or changes; what `field_manager` owned and no longer names is removed."""
        return await self._document(
            "PATCH",
            kind.path(namespace, name),
            query={"fieldManager": field_manager, "force": "true" if force else "false"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    async def _document(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = "application/json",
        accept: str = "",
    ) -> Document:
        """Send one request and decode its answer; everything that goes wrong becomes an `ApiError`."""
        request = f"{method} {path}"
        limits = aiohttp.ClientTimeout(total=self._timeout)
        try:
            async with self._send(
                method,
                path,
                query=query,
                body=body,
                content_type=content_type,
                accept=accept,
                timeout=limits,
            ) as response:
                await raise_for_status(response, request)
                return decoded(await response.read(), request)
        except TimeoutError as error:
            raise ApiUnreachable(
                f"no answer within {self._timeout:g} s", request=request, reason="Timeout"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(describe(error), request=request) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = "application/json",
        accept: str = "",
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("ApiClient is used outside its `async with`")
        headers = {"Content-Type": content_type} if body is not None else {}
        if accept:
            headers["Accept"] = accept
        try:
            token = self._access.token()
        except AccessError as error:
            raise ApiUnreachable(str(error), request=f"{method} {path}", reason="NoToken") from error
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self._session.request(
            method,
            self._access.server + path,
            params=query,
            data=None if body is None else msgspec.json.encode(body),
            headers=headers,
            timeout=timeout,
            # A redirect would carry the token elsewhere; API servers do not redirect API requests.
            allow_redirects=False,
            server_hostname=self._access.tls_server_name,
        )


def selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    """The query of a list or watch."""
    query = {}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query


def event_of(line: bytes, request: str) -> tuple[str, Document]:
    """One line of a watch as (type, object); an ERROR event is raised."""
    event = decoded(line, request)
    kind, document = event.get("type"), event.get("object")
    if kind == "ERROR":
        raise from_status(document, status=500, request=request)
    if not isinstance(kind, str) or not isinstance(document, dict):
        raise ApiUnreachable(f"not a watch event: {line[:80]!r}", request=request, reason="NotAnApiAnswer")
    return kind, document


def decoded(body: bytes, request: str) -> Document:
    """The JSON object in `body`; half a line of a broken watch, or a login page of a proxy, is an `ApiError`."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiUnreachable(f"not JSON: {error}", request=request, reason="NotAnApiAnswer") from error
    if not isinstance(document, dict):
        raise ApiUnreachable("JSON, but not an object", request=request, reason="NotAnApiAnswer")
    return document


async def raise_for_status(response: aiohttp.ClientResponse, request: str) -> None:
    """Raise what the server answered, unless it is a success."""
    if response.status in SUCCESSES:
        return
    body = await response.read()
    after = retry_after_of(response.headers.get("Retry-After"))
    raise from_body(body, status=response.status, request=request, retry_after=after)


def retry_after_of(header: str | None) -> float | None:
    """Seconds of a Retry-After header; the API server never sends the date form, so that is ignored."""
    if header is None or not header.strip().isdigit():
        return None
    return float(header)


def describe(error: BaseException) -> str:
    """An exception's own words, or its class where it has none (asyncio raises empty ones)."""
    return str(error) or type(error).__name__
