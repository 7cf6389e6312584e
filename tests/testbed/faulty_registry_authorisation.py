"""Switches of `faulty_registry_quirks` about who may read: tokens, challenges, passwords (rows 1 to 22)."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

from aiohttp import web

from tests.testbed.faulty_registry_quirks import AT_STORE, SCOPE, QuirkyRegistry, row


def bearer(world: QuirkyRegistry, *, realm: str = "", extra: str = "") -> web.Response:
    """401 with the usual challenge; `extra` is more parameters."""
    where = realm or f"{world.registry.url}/token"
    parameters = extra or f',service="registry.example",scope="{SCOPE}"'
    return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{where}"{parameters}'})


def token_of(request: web.Request) -> str:
    """The bearer token of a request."""
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def basic_of(request: web.Request) -> str:
    """`user:password` of a request."""
    text = request.headers.get("Authorization", "")
    return base64.b64decode(text.removeprefix("Basic ")).decode() if text.startswith("Basic ") else ""


def issue(world: QuirkyRegistry, **more: object) -> web.Response:
    """The next token."""
    world.seen["tokens"] += 1
    return web.json_response({"token": f"t{world.seen['tokens']}", **more})


def current(world: QuirkyRegistry, request: web.Request) -> bool:
    """Whether a request carries the token that was issued last."""
    return bool(world.seen["tokens"]) and token_of(request) == f"t{world.seen['tokens']}"


@row(1)
async def one_of_two_names(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path == "/token":
        return web.json_response(world.variant)
    return None if token_of(request) == "good" else bearer(world)


@row(2, 3, 4)
async def tokens_end(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`notes["dead"]` is the number of the last token that is honoured no more; `variant` goes with each token."""
    if request.path == "/token":
        return issue(world, **world.variant)
    dead = world.notes.get("dead", 0)
    number = token_of(request).removeprefix("t")
    return None if number.isdigit() and int(number) > dead else bearer(world)


@row(5)
async def identity_tokens_are_good_once(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    if request.path == "/token":
        given = parse_qs(await request.text()).get("refresh_token", [""])[0]
        expected = f"identity{world.seen['tokens'] or ''}"
        if given != expected or world.notes.get("revoked"):
            world.notes["revoked"] = True
            return web.json_response({"error": "invalid_grant"}, status=401)
        successor = f"identity{world.seen['tokens'] + 1}" if world.variant == "rotating" else ""
        return issue(world, expires_in=300, refresh_token=successor)
    return None if current(world, request) else bearer(world)


@row(6, 7, 8, 9)
async def odd_challenges(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    """`variant`: the lines of WWW-Authenticate, with {url} for the registry's, and what gets in."""
    lines, wanted = world.variant
    if request.path == "/token":
        world.notes["query"] = dict(request.query)
        return issue(world)
    if wanted == "basic" and basic_of(request) == "alice:secret":
        return None
    if wanted == "bearer" and current(world, request):
        return None
    response = web.Response(status=401)
    for line in lines:
        response.headers.add("WWW-Authenticate", line.format(url=world.registry.url))
    return response


@row(10, 11, 12)
async def lean_challenges(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path == "/token":
        world.notes["query"] = dict(request.query)
        return issue(world)
    return None if current(world, request) else bearer(world, extra=world.variant or ",x=y")


@row(13)
async def expired_tokens_are_bad_requests(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    if request.path == "/token":
        return issue(world, expires_in=3600)
    if not token_of(request):
        return bearer(world)
    return (
        None if current(world, request) and not world.notes.pop("expire", False) else web.Response(status=400)
    )


@row(14)
async def expired_passwords_are_forbidden(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    given = basic_of(request)
    if not given:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="ecr"'})
    if given == world.notes["password"]:
        return None
    return web.json_response(
        {"errors": [{"code": "DENIED", "message": "Your authorization token has expired. Reauthenticate and try again."}]},
        status=403,
    )  # fmt: skip


@row(15)
async def stale_passwords_for_a_public_image(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    if request.path == "/token":
        if request.method == "POST" or "Authorization" in request.headers:
            return web.json_response({"details": "incorrect username or password"}, status=world.variant)
        return issue(world)
    return None if current(world, request) else bearer(world)


@row(16)
async def another_repositorys_password(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    """The first password is good for a token, but not for this repository's content."""
    if request.path == "/token":
        name = parse_qs(await request.text()).get("username", [""])[0]
        return web.json_response({"token": f"of-{name}"})
    if token_of(request) == "of-ours":
        return None
    return web.Response(status=world.variant) if token_of(request) else bearer(world)


@row(17)
async def private_and_missing_look_alike(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    if request.path == "/token":
        return web.json_response({"errors": [{"code": "DENIED", "message": "denied"}]}, status=world.variant)
    return bearer(world)


@row(18)
async def no_challenge_on_get(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path == "/token":
        return issue(world)
    if current(world, request):
        return None
    return bearer(world) if request.method == "HEAD" else web.Response(status=400)


@row(19)
async def realms_elsewhere(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    if request.path == "/token":
        where = world.variant
        return web.Response(status=302, headers={"Location": f"{world.store.url}/token"}) if where == "redirect" else issue(world)  # fmt: skip
    if current(world, request):
        return None
    return bearer(
        world, realm=f"{world.registry.url}/token" if world.variant == "redirect" else world.variant
    )


@row(20)
async def the_store_wants_its_own_token(
    world: QuirkyRegistry, request: web.Request
) -> web.StreamResponse | None:
    """`variant` is where the registry redirects to: a path of the store, like another registry's or a blob's."""
    if request.path == "/token":
        world.notes["form"] = await request.text()
        return web.json_response({"token": "of-store" if request[AT_STORE] else "of-registry"})
    if request[AT_STORE]:
        if token_of(request) == "of-store":
            return None
        world.notes.setdefault("strange", []).append(request.headers.get("Authorization"))
        return bearer(world, realm=f"{world.store.url}/token")
    if token_of(request) != "of-registry":
        return bearer(world)
    target = request.path if world.variant == "registry" else f"/store/{request.path.rpartition('/')[2]}"
    return web.Response(status=307, headers={"Location": f"{world.store.url}{target}"})


@row(21)
async def cookies(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    world.seen["cookies"] += "Cookie" in request.headers
    response = world.good(request)
    response.headers["Set-Cookie"] = "sid=1; Path=/"
    return response


@row(22)
async def passwords_on_the_node(world: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
    world.notes.setdefault("headers", []).append(json.dumps(dict(request.headers)))
    return None
