"""Switches of `faulty_registry_quirks` about where a registry sends its clients (rows 23 to 33)."""

from __future__ import annotations

from aiohttp import web

from tests.testbed.faulty_registry_authorisation import basic_of
from tests.testbed.faulty_registry_quirks import AT_STORE, QuirkyRegistry, is_blob, part, row, start_body

XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


def xml(status: int, code: str, message: str = "refused") -> web.Response:
    """An object store's error."""
    return web.Response(status=status, text=XML.format(code, message), content_type="application/xml")


@row(23, 24)
async def one_authorisation_only(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """A signed URL on another port of the same host: a password that follows is an error."""
    if request[AT_STORE]:
        if "Authorization" in request.headers:
            return xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        return None
    if basic_of(request) != "alice:secret":
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=r"})
    return world.to_store(request, "?sig=1") if is_blob(request) else None


@row(25)
async def exact_spelling(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """The signature covers the target as it was written."""
    odd = "/a%2Fb%3Ac%27d%2Ce%40f/x%20y?k=a%2Bb%2F%3D&to=%27%2C%40"
    if request[AT_STORE]:
        return part(request, world.layer) if request.raw_path == odd else xml(403, "SignatureDoesNotMatch")
    if is_blob(request):
        return web.Response(status=307, headers={"Location": f"{world.store.url}{odd}"})
    return None


@row(26)
async def large_heads(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request[AT_STORE]:
        response = world.good(request)
        for number in range(130):
            response.headers[f"X-Header-{number}"] = "x"
        return response
    return world.to_store(request, f"?sig={'x' * 9000}") if is_blob(request) else None


@row(27)
async def signed_for_get(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request[AT_STORE]:
        if request.method == "HEAD":
            return web.Response(status=world.variant)
        name = request.path.rpartition("/")[2]
        media_type, body = world.documents[name]
        return web.Response(body=body, content_type=media_type)
    return world.to_store(request)


@row(28)
async def no_heads_on_blobs(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    return web.Response(status=401) if request.method == "HEAD" and is_blob(request) else None


@row(29)
async def signed_urls_end(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """Each URL names the epoch it was signed in; `notes["epoch"]` is the one that is honoured."""
    epoch = str(world.notes.get("epoch", 1))
    if request[AT_STORE]:
        return None if request.query.get("sig") == epoch else xml(world.variant, "AccessDenied", "expired")
    if not is_blob(request):
        return None
    world.seen["redirects"] += 1
    return world.to_store(request, f"?sig={epoch}")


@row(30)
async def signed_urls_are_good_once(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """The first body breaks off, and its URL is refused from then on."""
    if not request[AT_STORE]:
        world.seen["redirects"] += 1
        return world.to_store(request, f"?sig={world.seen['redirects']}")
    world.seen[request.query["sig"]] += 1
    if world.seen[request.query["sig"]] > 1:
        return xml(400, "InvalidRequest")
    if request.query["sig"] != "1":
        return None
    response = await start_body(
        request, world.layer[:100_000], headers={"Content-Length": str(len(world.layer))}
    )
    assert request.transport is not None
    request.transport.close()
    return response


@row(31)
async def a_bucket_denies(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request[AT_STORE]:
        return xml(403, "AccessDenied", "Access Denied")
    return world.to_store(request) if is_blob(request) else None


@row(32)
async def relative_targets(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path.startswith("/moved/"):
        return part(request, world.layer)
    return (
        web.Response(status=302, headers={"Location": "../../../../moved/here"}) if is_blob(request) else None
    )


@row(33)
async def private_targets(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    return web.Response(status=307, headers={"Location": world.variant})
