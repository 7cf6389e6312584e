"""Who we are at a registry: credentials by host and repository, as a docker config.json holds them."""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

_HUB = "docker.io"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password, an identity (refresh) token, or a ready bearer token. Never shown by `repr`."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class Credentials(Protocol):
    """Where credentials come from."""

    def lookup(self, host: str, repository: str) -> list[Credential]:
        """What may be tried at `host[:port]` for a repository (`library/nginx`), the most specific first."""


class NoCredentials:
    """Anonymous everywhere."""

    def lookup(self, host: str, repository: str) -> list[Credential]:  # noqa: ARG002 - the protocol's names
        """Nothing."""
        return []


class InvalidDockerConfig(ValueError):
    """A docker config.json that cannot be used; names the file and the entry, never a value in it."""


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct):
    auths: dict[str, _Entry] | None = None


@dataclass(frozen=True, slots=True)
class _Key:
    """The key of an entry: `*.example.com:5000/team`, taken apart."""

    host: str
    port: str
    path: str

    def matches(self, host: str, port: str, repository: str) -> bool:
        """By the kubelet's rules: globs within one label, equal ports, a prefix of the path.

        Unlike the kubelet's, the prefix ends at a slash: credentials for `team` are not for `team-two`.
        """
        labels, wanted = self.host.split("."), host.split(".")
        return (
            self.port == port
            and len(labels) == len(wanted)
            # Equal first: the brackets of an IPv6 address are no character class.
            and (labels == wanted or all(map(fnmatch.fnmatchcase, wanted, labels)))
            and (not self.path or f"{repository}/".startswith(f"{self.path}/"))
        )


class DockerConfig:
    """The `auths` of a docker config.json, matched like the kubelet's keyring. Credential helpers are not run."""

    def __init__(self, auths: Mapping[str, Credential]) -> None:
        entries = [(_key(text), credential) for text, credential in auths.items()]
        self._entries = sorted(entries, key=lambda entry: (-len(entry[0].path), "*" in entry[0].host))

    @classmethod
    def load(cls, path: Path) -> DockerConfig:
        """Read a config.json.

        Raises:
            InvalidDockerConfig: it cannot be read or is not one.
        """
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise InvalidDockerConfig(f"cannot read the docker config {path}: {error.strerror}") from error

    @classmethod
    def parse(cls, data: bytes, source: str = "the docker config") -> DockerConfig:
        """Read the JSON of a config.json or of a Secret's `.dockerconfigjson`."""
        try:
            document = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidDockerConfig(f"{source} is not a docker config.json: {error}") from None
        return cls(dict(_credentials(document.auths or {}, source)))

    def lookup(self, host: str, repository: str) -> list[Credential]:
        """Every entry that matches, the longest path first, exact hosts before globs."""
        name, port = _host_port(_HUB if host in _HUB_HOSTS else host)
        return [credential for key, credential in self._entries if key.matches(name, port, repository)]


def _credentials(auths: Mapping[str, _Entry], source: str) -> Iterable[tuple[str, Credential]]:
    for key, entry in auths.items():
        username, password = entry.username, entry.password
        if entry.auth:
            try:
                decoded = base64.b64decode(entry.auth, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise InvalidDockerConfig(
                    f"{source}: 'auth' of {key!r} is not base64 of user:password"
                ) from None
            username, separator, password = decoded.rstrip("\0").partition(":")
            if not separator:
                raise InvalidDockerConfig(f"{source}: 'auth' of {key!r} has no ':' between user and password")
        credential = Credential(username, password.strip("\0"), entry.identitytoken, entry.registrytoken)
        if credential != Credential():  # Docker leaves {} behind where a credential helper holds the secret.
            yield key, credential


def _key(text: str) -> _Key:
    rest = text.partition("://")[2] or text
    host, _, path = rest.partition("/")
    if host in _HUB_HOSTS:
        host = _HUB
    # "https://index.docker.io/v1/" is how docker login names Docker Hub; other registries got /v1/ or /v2/ likewise.
    path = path.strip("/")
    name, port = _host_port(host)
    return _Key(name, port, "" if path in ("v1", "v2") else path)


def _host_port(host: str) -> tuple[str, str]:
    name, separator, port = host.rpartition(":")
    return (name, port) if separator and not host.endswith("]") else (host, "")
