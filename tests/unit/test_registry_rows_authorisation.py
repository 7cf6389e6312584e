"""How registries ask who we are, row by row (A1), against the fault-injecting registry."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import tests.testbed.faulty_registry_authorisation  # noqa: F401 - registers the switches
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import Credential, DockerConfig
from imageprepull.registry.errors import ErrorKind, RegistryError
from tests.testbed.faulty_registry_quirks import SCOPE, Held, QuirkyRegistry

ALICE = Credential("alice", "secret")


async def fetch(client: RegistryClient, world: QuirkyRegistry) -> None:
    assert await client.fetch_document(world.reference, world.config) == world.blobs[world.config.digest]


async def failure(client: RegistryClient, world: QuirkyRegistry) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await fetch(client, world)
    assert "secret" not in str(caught.value) + repr(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "answer", [{"token": "good"}, {"access_token": "good"}, {"token": "bad", "access_token": "good"}]
)
async def test_row_1_a_token_has_either_name_and_access_token_wins(answer: dict[str, str]) -> None:
    async with QuirkyRegistry(1, answer) as world, world.client() as client:
        await fetch(client, world)


async def test_row_2_a_token_that_ends_in_mid_layer_is_renewed_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with QuirkyRegistry(2, {"expires_in": 300}) as world, world.client() as client:
        async with client.open_blob(world.reference, world.blob, 0, length=1000) as stream:
            first = b"".join([part async for part in stream])
        now = time.monotonic()
        monkeypatch.setattr("imageprepull.registry.authorization.time.monotonic", lambda: now + 301)
        world.notes["dead"] = 1

        async def read(offset: int) -> bytes:
            async with client.open_blob(world.reference, world.blob, offset, length=1000) as stream:
                return b"".join([part async for part in stream])

        parts = await asyncio.gather(*(read(offset) for offset in range(1000, 9000, 1000)))
        assert first + b"".join(parts) == world.layer[:9000]
        assert world.seen["tokens"] == 2
        refused = [request for request in world.registry.requests if "Authorization" not in request.headers]
        assert len([request for request in refused if "/blobs/" in request.path]) == 1, "only the very first"


@pytest.mark.parametrize("life", [{}, {"expires_in": 0}, {"expires_in": 10**9}, {"expires_in": None}])
async def test_row_3_a_life_is_no_promise(life: dict[str, Any]) -> None:
    async with QuirkyRegistry(3, life) as world, world.client() as client:
        await fetch(client, world)
        world.notes["dead"] = 1
        await fetch(client, world)
        assert world.seen["tokens"] == 2


async def test_row_3_without_a_life_a_token_is_kept_for_a_minute() -> None:
    async with QuirkyRegistry(3, {}) as world, world.client() as client:
        await fetch(client, world)
        (grant,) = client._authorizer._grants.values()
        assert 40 < grant.until - time.monotonic() <= 60


async def test_row_4_the_clock_of_the_registry_does_not_matter() -> None:
    skewed = {"expires_in": 300, "issued_at": "2001-01-01T00:00:00Z"}
    async with QuirkyRegistry(4, skewed) as world, world.client() as client:
        await fetch(client, world)
        await fetch(client, world)
        assert world.seen["tokens"] == 1


async def test_row_5_an_identity_token_is_used_once_and_its_successor_after_it() -> None:
    async with (
        QuirkyRegistry(5, "rotating") as world,
        world.client(Credential(identity_token="identity")) as client,
    ):
        for _ in range(3):
            await fetch(client, world)
            (grant,) = client._authorizer._grants.values()
            grant.until = 0
        assert world.seen["tokens"] == 3


async def test_row_5_a_revoked_identity_token_says_so() -> None:
    async with QuirkyRegistry(5) as world, world.client(Credential(identity_token="identity")) as client:
        await asyncio.gather(*(fetch(client, world) for _ in range(5)))
        assert world.seen["tokens"] == 1, "one exchange, not one per request"
        (grant,) = client._authorizer._grants.values()
        grant.until = 0
        error = await failure(client, world)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "CredentialsRejected")


BEARER = 'Bearer realm="{url}/token",service="s",scope="' + SCOPE + '"'


@pytest.mark.parametrize(
    ("number", "lines", "wanted"),
    [
        (6, ["Negotiate", 'Basic realm="x"'], "basic"),
        (6, ["Negotiate abc==", BEARER], "bearer"),
        (7, ['Basic realm="x", ' + BEARER], "bearer"),
        (7, [BEARER + ', Basic realm="x"'], "bearer"),
        (8, ['BASIC realm="Sonatype Nexus"'], "basic"),
        (8, ["Basic realm=/"], "basic"),
        (8, ['bEARER REALM="{url}/token",SERVICE="s"'], "bearer"),
        (
            9,
            ['Bearer realm="{url}/token?a=1,b=2",service="s",scope="repository:team/app:pull,push"'],
            "bearer",
        ),
    ],
)
async def test_row_6_7_8_9_challenges_are_tokenised(number: int, lines: list[str], wanted: str) -> None:
    async with QuirkyRegistry(number, (lines, wanted)) as world, world.client(ALICE) as client:
        await fetch(client, world)


async def test_row_9_commas_within_quotes_reach_the_token_service() -> None:
    line = 'Bearer realm="{url}/token?a=1,b=2",service="s",scope="repository:team/app:pull,push"'
    async with QuirkyRegistry(9, ([line], "bearer")) as world, world.client() as client:
        await fetch(client, world)
        assert world.notes["query"] == {
            "a": "1,b=2",
            "service": "s",
            "scope": "repository:team/app:pull,push",
        }


@pytest.mark.parametrize("extra", [',service="s"', ',service="s",scope=""'])
async def test_row_10_a_missing_scope_is_made_from_the_request(extra: str) -> None:
    async with QuirkyRegistry(10, extra) as world, world.client() as client:
        await fetch(client, world)
        assert world.notes["query"] == {"service": "s", "scope": SCOPE}


async def test_row_11_a_missing_service_is_left_out() -> None:
    async with QuirkyRegistry(11) as world, world.client() as client:
        await fetch(client, world)
        assert world.notes["query"] == {"scope": SCOPE}


async def test_row_12_a_token_for_another_path_is_kept_for_the_one_asked_for() -> None:
    async with (
        QuirkyRegistry(12, ',scope="repository:upstream/team/app:pull"') as world,
        world.client() as client,
    ):
        for _ in range(3):
            await fetch(client, world)
        assert world.notes["query"] == {"scope": "repository:upstream/team/app:pull"}
        assert world.seen["tokens"] == 1
        assert len(world.asked("/blobs/")) == 4, "one refusal in all, not one per request"


async def test_row_13_an_expired_token_answered_by_400_is_renewed() -> None:
    async with QuirkyRegistry(13) as world, world.client() as client:
        await fetch(client, world)
        world.notes["expire"] = True
        await fetch(client, world)
        assert world.seen["tokens"] == 2


async def test_row_14_an_expired_password_is_asked_for_anew_once() -> None:
    held = Held(Credential("AWS", "old-secret"))
    async with QuirkyRegistry(14) as world, world.client(held=held) as client:
        world.notes["password"] = "AWS:old-secret"
        await fetch(client, world)
        world.notes["password"] = "AWS:new-secret"
        held.credentials = [Credential("AWS", "new-secret")]
        before = len(held.asked)
        await fetch(client, world)
        assert len(held.asked) == before + 1
        world.notes["password"] = "nobody's"
        error = await failure(client, world)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "CredentialsRejected")
        assert "Reauthenticate" in str(error)


@pytest.mark.parametrize("status", [401, 403])
async def test_row_15_stale_credentials_for_a_public_image_are_named_and_not_passed_over(status: int) -> None:
    async with QuirkyRegistry(15, status) as world, world.client(ALICE) as client:
        error = await failure(client, world)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "CredentialsRejected")
        assert "can be read without credentials" in str(error)


async def test_row_15_a_source_that_allows_nobody_is_read_as_nobody() -> None:
    async with QuirkyRegistry(15, 401) as world, world.client(ALICE, Credential()) as client:
        await fetch(client, world)


@pytest.mark.parametrize("status", [401, 403])
async def test_row_16_each_matching_secret_is_tried_the_longest_path_first(status: int) -> None:
    config = DockerConfig(
        {
            "registry.example": Credential("anybody", "a-secret"),
            "registry.example/team": Credential("theirs", "b-secret"),
            "registry.example/team/app": Credential("ours", "c-secret"),
        }
    )
    assert [one.username for one in config.lookup("registry.example", "team/app")] == [
        "ours", "theirs", "anybody",
    ]  # fmt: skip
    async with (
        QuirkyRegistry(16, status) as world,
        world.client(Credential("theirs", "x"), Credential("ours", "y")) as client,
    ):
        await fetch(client, world)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_row_17_what_may_be_private_or_missing_is_called_both(status: int) -> None:
    async with QuirkyRegistry(17, status) as world, world.client() as client:
        error = await failure(client, world)
        assert (error.kind, error.reason) == (ErrorKind.CREDENTIALS, "DeniedOrMissing")


async def test_row_18_a_token_holds_for_every_method() -> None:
    async with QuirkyRegistry(18) as world, world.client() as client:
        assert await client.resolve(world.reference) == world.manifest
        await fetch(client, world)
        assert world.seen["tokens"] == 1


@pytest.mark.parametrize(
    "realm", ["http://169.254.169.254/latest/meta-data", "http://[fe80::1]/token", "file:///etc/passwd"]
)
async def test_row_19_a_realm_that_nobody_may_point_to_is_refused(realm: str) -> None:
    async with QuirkyRegistry(19, realm) as world, world.client(ALICE) as client:
        assert (await failure(client, world)).reason == "RealmRefused"
        assert not world.asked("/token")


async def test_row_19_a_realm_that_redirects_is_not_followed() -> None:
    async with QuirkyRegistry(19, "redirect") as world, world.client(ALICE) as client:
        await failure(client, world)
        assert world.store.asked == []


async def test_row_20_another_registry_gets_what_is_ours_there() -> None:
    async with QuirkyRegistry(20, "registry") as world:
        store = world.store.address

        class ByHost:
            def lookup(self, host: str, repository: str) -> list[Credential]:
                return [Credential("at-store", "s-secret") if host == store else ALICE]

        async with world.client(held=ByHost()) as client:
            await fetch(client, world)
        assert world.notes["strange"] == [None], "the registry's token did not go there"
        assert "at-store" in world.notes["form"]


async def test_row_20_a_store_that_wants_a_token_is_a_stale_redirect() -> None:
    async with QuirkyRegistry(20, "blob") as world, world.client(ALICE) as client:
        with pytest.raises(RegistryError) as caught:
            async with client.open_blob(world.reference, world.blob):
                pass
        assert (caught.value.reason, caught.value.kind) == ("RedirectTargetRefused", ErrorKind.TEMPORARY)
        assert world.notes["strange"] == [None]


async def test_row_21_cookies_are_not_kept() -> None:
    async with QuirkyRegistry(21) as world, world.client() as client:
        for _ in range(2):
            await fetch(client, world)
        assert world.seen["cookies"] == 0


async def test_row_22_the_nodes_environment_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login node password node-secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with QuirkyRegistry(22) as world, world.client() as client:
        await fetch(client, world)
        assert not any("Authorization" in headers for headers in world.notes["headers"])
