"""Another registry that a host sends us to gets our password by its own TLS settings, never by those of that host."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from aiohttp import web

from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import Credential
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.proxies import Proxies
from tests.testbed.faulty_registry_quirks import QuirkyRegistry
from tests.testbed.faulty_registry_tls import Certificates, tls
from tests.testbed.registry_server import serve

ALICE = Credential("alice", "secret")
BASIC = "Basic " + b64encode(b"alice:secret").decode()


class Other(QuirkyRegistry):
    """Wants alice's password, or anybody's token with `anonymous`; `challenges` are what it says in turn."""

    def __init__(self, *challenges: str, anonymous: bool = False) -> None:
        super().__init__()
        self.challenges = list(challenges) or ['Basic realm="other"']
        self.wanted = "Bearer anybody" if anonymous else BASIC
        self.told: list[str | None] = []
        self.tokens = 0

    def good(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            self.tokens += 1
            return web.json_response({"token": "anybody"})
        self.told.append(request.headers.get("Authorization"))
        if self.told[-1] == self.wanted:
            return super().good(request)
        text = self.challenges.pop(0) if len(self.challenges) > 1 else self.challenges[0]
        return web.Response(status=401, headers={"WWW-Authenticate": text.replace("SELF", request.host)})


class Mirror(QuirkyRegistry):
    """Sends everybody elsewhere."""

    target = ""

    def good(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"{self.target}{request.path_qs}"})


class At:
    """Credentials for one address."""

    def __init__(self, address: str, *credentials: Credential) -> None:
        self._address, self._credentials = address, list(credentials)

    def lookup(self, host: str, repository: str) -> list[Credential]:
        return self._credentials if host == self._address else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    found = Certificates(tmp_path_factory.mktemp("certificates"))
    found.authority("root")
    found.leaf("server", "root")
    return found


def configure(root: Path, registry: str, text: str) -> None:
    folder = root / registry
    folder.mkdir()
    (folder / "hosts.toml").write_text(text)


async def pull(made: Certificates, root: Path, other: Other, settings: str, *held: Credential) -> None:
    """From a mirror that is not verified and that sends us to `other`, for which there are `settings`."""
    certificate = made.folder / "server.crt", made.key("server")
    async with (
        other,
        Mirror() as mirror,
        tls(other, *certificate) as address,
        tls(mirror, *certificate) as first,
    ):
        mirror.target = f"https://{address}"
        configure(root, "registry.example", f'server = "https://{first}"\nskip_verify = true\n')
        configure(root, address, f'server = "https://{address}"\n{settings}')
        client = RegistryClient(
            HostsConfig([root]), At(address, *held), attempts=1, stall_timeout=5, proxies=Proxies()
        )
        async with client:
            assert await client.fetch_document(other.reference, other.manifest) == other.body


async def test_a_password_goes_to_whom_its_own_settings_trust(made: Certificates, tmp_path: Path) -> None:
    other = Other()
    await pull(made, tmp_path, other, f'ca = "{made.folder}/root.crt"\n', ALICE)
    assert other.told == [None, None, BASIC]


async def test_a_password_does_not_go_where_only_the_mirror_is_not_verified(
    made: Certificates, tmp_path: Path
) -> None:
    other = Other()
    with pytest.raises(RegistryError) as caught:
        await pull(made, tmp_path, other, "", ALICE)
    assert caught.value.reason == "CertificateNotTrusted"
    assert other.told == [None], "the mirror's rules are good for what is no secret"


async def test_a_password_goes_to_no_realm_that_was_named_without_verification(
    made: Certificates, tmp_path: Path
) -> None:
    certificate = made.folder / "server.crt", made.key("server")
    async with Other() as thief, tls(thief, *certificate) as address:
        other = Other(f'Bearer realm="https://{address}/token"', 'Basic realm="other"')
        await pull(made, tmp_path, other, f'ca = "{made.folder}/root.crt"\n', ALICE)
    assert thief.tokens == 0
    assert other.told == [None, None, BASIC]


async def test_where_nothing_is_ours_the_mirrors_rules_hold_as_in_containerd(
    made: Certificates, tmp_path: Path
) -> None:
    other = Other('Bearer realm="https://SELF/token"', anonymous=True)
    await pull(made, tmp_path, other, "")
    assert other.told == [None, "Bearer anybody"]


async def test_a_password_for_a_registry_with_tls_does_not_go_in_the_clear(tmp_path: Path) -> None:
    async with Other() as other:
        address = other.registry.address
        async with serve(
            lambda request: web.Response(
                status=307, headers={"Location": f"http://{address}{request.path_qs}"}
            )
        ) as mirror:
            configure(tmp_path, "registry.example", f'server = "{mirror.url}"\n')
            configure(tmp_path, address, f'server = "https://{address}"\n')
            client = RegistryClient(
                HostsConfig([tmp_path]), At(address, ALICE), attempts=1, proxies=Proxies()
            )
            async with client:
                with pytest.raises(RegistryError) as caught:
                    await client.fetch_document(other.reference, other.manifest)
        assert caught.value.status == 401
        assert other.told == [None]
