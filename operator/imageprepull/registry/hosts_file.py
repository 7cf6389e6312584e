"""One folder of certs.d: its hosts.toml, or docker's `*.crt` files where there is none."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imageprepull.registry.host import CAPABILITIES, InvalidHostsFile, RegistryHost

KNOWN_KEYS = frozenset({"capabilities", "ca", "skip_verify"})
ROOT_KEYS = KNOWN_KEYS | {"server", "host"}


def read_folder(folder: Path, upstream: RegistryHost) -> list[RegistryHost]:
    """The hosts of a folder: those of hosts.toml in the order of the file, then its `server` or else `upstream`.

    Raises:
        InvalidHostsFile: unreadable, or with something that this version does not know.
    """
    path = folder / "hosts.toml"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return [_docker_style(folder, upstream)]
    except OSError as error:
        raise InvalidHostsFile(path, f"cannot be read: {error.strerror}") from error
    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidHostsFile(path, f"is not TOML: {error}") from None
    return parse(document, path, upstream)


def parse(document: Mapping[str, Any], path: Path, upstream: RegistryHost) -> list[RegistryHost]:
    """The hosts of a hosts.toml that was read from `path`; tomllib keeps the order of its tables."""
    _refuse_unknown(document, ROOT_KEYS, path, "")
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise InvalidHostsFile(path, "'host' must be tables of the form [host.\"https://…\"]")
    hosts = []
    for url, table in tables.items():
        where = f'[host."{url}"]'
        if not isinstance(table, dict):
            raise InvalidHostsFile(path, f"{where} must be a table")
        _refuse_unknown(table, KNOWN_KEYS, path, f" in {where}")
        hosts.append(_host(url, table, path, where))
    server = document.get("server")
    if server is None:
        own = {key: document[key] for key in KNOWN_KEYS & document.keys()}
        settings = _host(upstream.url, own, path, "the root")
        hosts.append(
            replace(
                settings,
                skip_verify=settings.skip_verify or upstream.skip_verify,
                https_first=settings.https_first or upstream.https_first,
            )
        )
    else:
        if not isinstance(server, str) or not server:
            raise InvalidHostsFile(path, "'server' must be a URL")
        hosts.append(_host(server, document, path, "'server'"))
    return hosts


def _host(url: str, table: Mapping[str, Any], path: Path, where: str) -> RegistryHost:
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidHostsFile(path, f"{where}: {url!r} is not a URL: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise InvalidHostsFile(path, f"{where}: {url!r} must be http(s)://host[:port][/path]")
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    ca = _paths(table.get("ca"), path, where)
    skip_verify = table.get("skip_verify", False)
    if not isinstance(skip_verify, bool):
        raise InvalidHostsFile(path, f"{where}: 'skip_verify' must be true or false")
    return RegistryHost(
        url=base if base.endswith("/v2") else f"{base}/v2",
        capabilities=_capabilities(table.get("capabilities"), path, where),
        ca=ca,
        skip_verify=skip_verify,
        https_first=parts.scheme == "http" and bool(ca or skip_verify) and port not in (None, 80),
    )


def _capabilities(value: Any, path: Path, where: str) -> frozenset[str]:
    if value is None:
        return CAPABILITIES
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidHostsFile(path, f"{where}: 'capabilities' must be a list of strings")
    unknown = sorted(set(value) - CAPABILITIES)
    if unknown:
        raise InvalidHostsFile(
            path, f"{where}: unknown capability {unknown[0]!r}; known are {', '.join(sorted(CAPABILITIES))}"
        )
    return frozenset(value)


def _paths(value: Any, path: Path, where: str) -> tuple[Path, ...]:
    entries = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InvalidHostsFile(path, f"{where}: 'ca' must be a path or a list of paths")
    return tuple(path.parent / entry for entry in entries)


def _refuse_unknown(table: Mapping[str, Any], known: frozenset[str], path: Path, where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidHostsFile(
                path, f"unknown or not yet supported key {key!r}{where}; known are {', '.join(sorted(known))}"
            )


def _docker_style(folder: Path, upstream: RegistryHost) -> RegistryHost:
    client = sorted(folder.glob("*.cert"))
    if client:
        raise InvalidHostsFile(client[0], "client certificates are not supported yet")
    return replace(upstream, ca=tuple(sorted(folder.glob("*.crt"))))
