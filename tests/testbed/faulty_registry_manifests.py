"""Switches of `faulty_registry_quirks` about manifests and indexes (rows 34 to 50)."""

from __future__ import annotations

from aiohttp import web

from imageprepull.oci.digests import sha256_digest
from tests.testbed.faulty_registry_quirks import AT_STORE, QuirkyRegistry, is_blob, row, start_body

PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in to go on</body></html>"


def document(world: QuirkyRegistry, request: web.Request) -> tuple[str, bytes] | None:
    """The manifest or index that a request is for."""
    return world.documents.get(request.path.rpartition("/")[2]) if "/manifests/" in request.path else None


@row(34)
async def no_digest(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    found = document(world, request)
    return web.Response(body=found[1], content_type=found[0]) if found else None


@row(35)
async def no_length_on_head(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    found = document(world, request)
    if request.method != "HEAD" or found is None:
        return None
    headers = {"Docker-Content-Digest": sha256_digest(found[1]), "Content-Type": found[0]}
    if world.variant == "zero":
        return web.Response(headers={**headers, "Content-Length": "0"})
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    return response


@row(36)
async def the_digest_of_another_form(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    """The header names what the registry keeps; it serves another form, under the tag only."""
    found = document(world, request)
    if request.path.endswith(world.notes.get("other", "?")):
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
    if found is None:
        return None
    other = world.notes["other"] = "sha256:" + "0" * 64
    return web.Response(body=found[1], headers={"Docker-Content-Digest": other, "Content-Type": found[0]})


@row(37, 38)
async def other_content_types(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    found = document(world, request)
    if found is None:
        return None
    headers = {"Docker-Content-Digest": sha256_digest(found[1]), "Content-Type": world.variant}
    return web.Response(body=found[1], headers=headers)


@row(39)
async def a_page_for_everything(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if world.variant == "chunked" and request.method == "GET":
        response = await start_body(
            request, PAGE.encode(), headers={"Content-Type": "text/html", "Transfer-Encoding": "chunked"}
        )
        await response.write_eof()
        return response
    return web.Response(text=PAGE, content_type="text/html")


@row(40)
async def manifests_under_blobs(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    name = request.path.rpartition("/")[2]
    if is_blob(request) and name in world.documents:
        world.seen["asked"] += 1
        return web.Response(status=200 if request.method == "HEAD" else 404)
    return None


@row(41, 43, 44, 47, 49)
async def other_documents(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: the body of any manifest, and its Content-Type."""
    if "/manifests/" not in request.path or world.variant is None:
        return None
    body, content_type = world.variant
    return web.Response(body=body, content_type=content_type)


@row(42)
async def a_child_is_missing(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path.endswith(world.manifest.digest):
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}, status=404)
    return None


@row(45)
async def other_digests(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    found = document(world, request)
    if found is None:
        return None
    headers = {"Docker-Content-Digest": "sha512:" + "a" * 128, "Content-Type": found[0]}
    return web.Response(body=found[1], headers=headers)


@row(46)
async def a_huge_index(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if "/manifests/" not in request.path:
        return None
    if request.method == "HEAD":
        return web.Response()
    response = await start_body(
        request, b'{"manifests":[' + b" " * (6 * 1024 * 1024), headers={"Transfer-Encoding": "chunked"}
    )
    await response.write_eof()
    return response


@row(48)
async def foreign_layers(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: whether the registry has the blob too. The store is where its URL points."""
    world.seen["store" if request[AT_STORE] else "registry"] += 1
    if request[AT_STORE]:
        world.notes["headers"] = dict(request.headers)
        return None
    return None if world.variant else web.Response(status=404)


@row(50)
async def a_mirror_lacks_it(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    return web.Response(status=world.variant)
