"""Docker's config.json: which entry is for which repository, and that nothing secret is shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from imageprepull.registry.credentials import Credential, DockerConfig, InvalidDockerConfig, NoCredentials


def config(*keys: str) -> DockerConfig:
    """Each entry's user is its key."""
    return DockerConfig({key: Credential(key, "secret") for key in keys})


def users(found: DockerConfig, host: str, repository: str = "team/app") -> list[str]:
    return [credential.username for credential in found.lookup(host, repository)]


@pytest.mark.parametrize(
    ("key", "host", "repository", "matches"),
    [
        ("r.example", "r.example", "team/app", True),
        ("https://r.example", "r.example", "team/app", True),
        ("https://r.example/v2/", "r.example", "team/app", True),
        ("r.example:5000", "r.example:5000", "team/app", True),
        ("r.example:5000", "r.example", "team/app", False),
        ("r.example", "r.example:5000", "team/app", False),
        ("r.example/team", "r.example", "team/app", True),
        ("r.example/team/app", "r.example", "team/app", True),
        ("r.example/team", "r.example", "team-two/app", False),
        ("r.example/other", "r.example", "team/app", False),
        ("*.example", "r.example", "team/app", True),
        ("*.example", "a.r.example", "team/app", False),
        ("*.r.example", "r.example", "team/app", False),
        ("r*.example", "r1.example", "team/app", True),
        ("https://index.docker.io/v1/", "registry-1.docker.io", "library/nginx", True),
        ("docker.io", "registry-1.docker.io", "library/nginx", True),
        ("docker.io", "mirror.example", "library/nginx", False),
        ("[::1]:5000", "[::1]:5000", "team/app", True),
    ],
)
def test_an_entry_is_for_hosts_and_paths_as_the_kubelet_has_it(
    key: str, host: str, repository: str, matches: bool
) -> None:
    assert users(config(key), host, repository) == ([key] if matches else [])


def test_the_most_specific_entry_comes_first() -> None:
    found = config("*.example", "r.example", "r.example/team", "r.example/team/app")
    assert users(found, "r.example") == ["r.example/team/app", "r.example/team", "r.example", "*.example"]


def test_entries_are_read_in_all_their_spellings() -> None:
    auth = base64.b64encode(b"alice:pass:word").decode()
    document = {
        "auths": {
            "a.example": {"auth": auth},
            "b.example": {"username": "bob", "password": "pw"},
            "c.example": {"identitytoken": "identity"},
            "d.example": {"registrytoken": "registry"},
            "e.example": {},
        },
        "credsStore": "desktop",
    }
    found = DockerConfig.parse(json.dumps(document).encode())
    assert found.lookup("a.example", "x") == [Credential("alice", "pass:word")]
    assert found.lookup("b.example", "x") == [Credential("bob", "pw")]
    assert found.lookup("c.example", "x") == [Credential(identity_token="identity")]
    assert found.lookup("d.example", "x") == [Credential(registry_token="registry")]
    assert found.lookup("e.example", "x") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a docker config"),
        ("[]", "not a docker config"),
        ('{"auths": 1}', "not a docker config"),
        ('{"auths": {"a.example": {"auth": "c2VjcmV0"}}}', "'a.example' has no ':'"),
        ('{"auths": {"a.example": {"auth": "sec ret!"}}}', "'auth' of 'a.example' is not base64"),
    ],
)
def test_what_cannot_be_read_is_named_and_not_shown(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InvalidDockerConfig, match=problem) as caught:
        DockerConfig.load(path)
    assert str(path) in str(caught.value)
    assert "sec" not in str(caught.value).replace(str(path), "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidDockerConfig, match=r"cannot read .*config\.json"):
        DockerConfig.load(tmp_path / "config.json")


def test_secrets_are_not_in_a_repr() -> None:
    assert "secret" not in repr(Credential("user", "secret", "secret", "secret"))


def test_no_credentials_is_anonymous_everywhere() -> None:
    assert NoCredentials().lookup("r.example", "x") == []
