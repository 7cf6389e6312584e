"""Switches of `faulty_registry_quirks` about how often a registry may be asked (rows 70 to 76)."""

from __future__ import annotations

from aiohttp import web

from tests.testbed.faulty_registry_quirks import QuirkyRegistry, row


@row(70)
async def limits_in_the_head(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    response = world.good(request)
    response.headers.update(world.variant)
    return response


@row(71, 72, 73, 74, 75)
async def too_many(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: status, headers, body and its type; `notes["refusals"]` is how many requests get it."""
    world.seen["asked"] += 1
    if world.seen["asked"] > world.notes.get("refusals", 1000):
        return None
    status, headers, text, content_type = world.variant
    return web.Response(status=status, headers=headers, text=text, content_type=content_type)


@row(76)
async def gets_of_manifests_count(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if "/manifests/" in request.path:
        world.seen[request.method] += 1
    return None
