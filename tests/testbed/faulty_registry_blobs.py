"""Switches of `faulty_registry_quirks` about blobs, ranges and connections (rows 51 to 69)."""

from __future__ import annotations

import asyncio
import gzip

from aiohttp import web

from tests.testbed.faulty_registry_quirks import QuirkyRegistry, is_blob, part, row, start_body


def body_of(world: QuirkyRegistry, request: web.Request) -> bytes | None:
    """The blob that a request is for."""
    return world.blobs.get(request.path.rpartition("/")[2]) if is_blob(request) else None


def close(request: web.Request) -> None:
    """Cut the connection."""
    assert request.transport is not None
    request.transport.close()


@row(51)
async def ranges_are_ignored(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    body = body_of(world, request)
    return web.Response(body=body) if body is not None else None


@row(52)
async def a_cold_cache(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """Until the cache is filled a range gets the whole, and each fetches it again."""
    body = body_of(world, request)
    if body is None or world.notes.get("warm"):
        return None
    world.seen["fetches"] += 1
    return web.Response(body=body)


@row(53)
async def ranges_are_refused(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: a status, or None where a range is never answered."""
    if not is_blob(request) or "Range" not in request.headers:
        return None
    world.seen["ranges"] += 1
    if world.variant is None:
        await asyncio.Event().wait()
    return web.Response(status=world.variant)


@row(54)
async def other_ranges(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: the Content-Range, and how many bytes come."""
    body = body_of(world, request)
    if body is None or "Range" not in request.headers:
        return None
    content_range, count = world.variant
    return web.Response(status=206, body=body[:count], headers={"Content-Range": content_range})


@row(55)
async def nothing_beyond_the_end(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    body = body_of(world, request)
    if body is None or "Range" not in request.headers:
        return None
    return web.Response(status=416, headers={"Content-Range": f"bytes */{len(body)}"})


@row(56, 57)
async def what_ranges_look_like(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """An open range is cut early; several at once get everything."""
    body, span = body_of(world, request), request.headers.get("Range", "")
    world.notes.setdefault("ranges", []).append(span)
    if body is None or not span:
        return None
    if "," in span:
        return web.Response(body=body)
    return web.Response(status=500) if span.endswith("-") else None


@row(58)
async def a_body_that_never_begins(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    body = body_of(world, request)
    if body is None:
        return None
    response = await start_body(request, b"", headers={"Content-Length": str(len(body))})
    await asyncio.Event().wait()
    return response


@row(59)
async def wrong_bytes(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    body = body_of(world, request)
    return part(request, bytes(len(body))) if body is not None else None


@row(60)
async def no_length_and_cut(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    body = body_of(world, request)
    if body is None:
        return None
    response = web.StreamResponse(headers={"Connection": "close"})
    response._length_check = False
    await response.prepare(request)
    await response.write(body[:1000])
    close(request)
    return response


@row(61)
async def encoded_bodies(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: the encoding's name, whether the body is really encoded, whether its length is told."""
    body = body_of(world, request)
    if body is None:
        return None
    name, really, told = world.variant
    sent = gzip.compress(body, 1) if really else body
    if told:
        return web.Response(body=sent, headers={"Content-Encoding": name})
    response = await start_body(
        request, sent, headers={"Content-Encoding": name, "Transfer-Encoding": "chunked"}
    )
    await response.write_eof()
    return response


@row(62)
async def connections_end_early(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """Each connection brings so many bytes and no more."""
    whole = part(request, world.layer) if body_of(world, request) is not None else None
    if whole is None or not isinstance(whole.body, bytes):
        return None
    world.seen["connections"] += 1
    response = web.StreamResponse(
        status=whole.status, headers={**whole.headers, "Content-Length": str(len(whole.body))}
    )
    await response.prepare(request)
    await response.write(whole.body[: world.variant])
    if len(whole.body) > world.variant:
        close(request)
    return response


@row(63, 64)
async def no_answer(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: a status after `notes["wait"]`, or None for never."""
    world.seen["asked"] += 1
    if world.notes.get("well"):
        return None
    if world.variant is None:
        await asyncio.Event().wait()
    return web.Response(status=world.variant)


@row(65)
async def streams_are_reset(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    world.notes.setdefault("versions", set()).add(tuple(request.version))
    return None


@row(67)
async def slow_but_steady(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """A body that takes longer than any patience with a pause, and never pauses that long."""
    body = body_of(world, request)
    if body is None:
        return None
    response = await start_body(request, b"", headers={"Content-Length": str(len(body))})
    for start in range(0, len(body), len(body) // 10):
        await asyncio.sleep(0.15)
        await response.write(body[start : start + len(body) // 10])
    return response


@row(68)
async def bodies_are_cut(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: chunked or length."""
    body = body_of(world, request)
    if body is None:
        return None
    name = "Transfer-Encoding" if world.variant == "chunked" else "Content-Length"
    response = await start_body(
        request, body[:100_000], headers={name: "chunked" if name == "Transfer-Encoding" else str(len(body))}
    )
    close(request)
    return response


@row(69)
async def a_blob_of_zeros(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """Ranges of a blob that is larger than anything 32 bits can count."""
    if not is_blob(request):
        return None
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    size = world.variant
    return web.Response(
        status=206,
        body=bytes(int(last) - int(first) + 1),
        headers={"Content-Range": f"bytes {first}-{last}/{size}"},
    )
