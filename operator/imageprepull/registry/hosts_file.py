"""One folder of certs.d: its hosts.toml, or docker's `*.crt`, `*.cert` and `*.key` files where there is none.

The rules are those of containerd's `core/remotes/docker/config/hosts.go`. One is not followed: a file that containerd
logs as broken and passes over is an error here, since the pull would silently go elsewhere. `hosts_keys.py` reads
the single keys.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from imageprepull.registry.host import CAPABILITIES, InvalidHostsFile, RegistryHost
from imageprepull.registry.hosts_keys import Table

KNOWN_KEYS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
)
ROOT_KEYS = KNOWN_KEYS | {"server", "host"}
_HEADER = re.compile(r"^[ \t]*\[(?!\[)[^\n]*", re.MULTILINE)
_noted: set[tuple[str, str]] = set()
log = structlog.get_logger(__name__)


def read_folder(folder: Path, upstream: RegistryHost) -> list[RegistryHost]:
    """The hosts of a folder: those of hosts.toml in the order of the file, then its `server` or else `upstream`.

    Raises:
        InvalidHostsFile: names the file, the key, and what is wrong with it.
    """
    path = folder / "hosts.toml"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise InvalidHostsFile(path, f"cannot be read: {error.strerror}") from error
    if not data:
        return [_docker_style(folder, upstream)]
    try:
        text = data.decode().replace("\r\n", "\n")  # as TOML has it; `_table_order` reads lines
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidHostsFile(path, f"is not TOML: {error}") from None
    return _parse(document, _table_order(text), path, upstream)


def _parse(
    document: Mapping[str, Any], order: list[str], path: Path, upstream: RegistryHost
) -> list[RegistryHost]:
    _note_unknown(document, ROOT_KEYS, path, "")
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise InvalidHostsFile(path, "'host' must be tables of the form [host.\"https://…\"]")
    for url, values in tables.items():
        if not isinstance(values, dict):
            raise InvalidHostsFile(path, f'[host."{url}"] must be a table')
        _note_unknown(values, KNOWN_KEYS, path, f' in [host."{url}"]')
        if url not in order:
            _note(
                path, f"host {url!r} has no table of its own, so that containerd does not see it, nor do we"
            )
    hosts = [_host(url, Table(tables[url], path, f'[host."{url}"]')) for url in order if url in tables]
    root = Table(document, path, "the root")
    server = root.text("server")
    if server:
        return [*hosts, _host(server, replace(root, where="'server'"))]
    own = _settings(upstream.url, root)
    # containerd gives a server that is not named all capabilities, and loopback is not verified whatever is said.
    return [
        *hosts,
        replace(
            own,
            capabilities=CAPABILITIES,
            skip_verify=own.skip_verify or upstream.skip_verify,
            https_first=own.https_first or upstream.https_first,
        ),
    ]


def _host(url: str, table: Table) -> RegistryHost:
    """One host by its URL, as `parseHostConfig` reads it."""
    written = url
    if not url.startswith("http"):
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on a bad one
    except ValueError as error:
        raise table.wrong(f"{written!r} is not a URL: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.netloc.endswith(":")
        or parts.query
        or parts.fragment
    ):
        raise table.wrong(f"{written!r} must be http(s)://host[:port][/path]")
    root = "/" + posixpath.normpath(parts.path or "/").strip("/")
    if not root.endswith("/v2") and not table.flag("override_path"):
        root += "/v2"
    return _settings(f"{parts.scheme}://{parts.netloc}/{root.strip('/')}".rstrip("/"), table)


def _settings(url: str, table: Table) -> RegistryHost:
    ca, client, skip_verify = table.paths("ca"), table.pairs("client"), table.flag("skip_verify")
    # A port of 80 says what is meant; any other may be either, and with TLS settings TLS is likelier.
    ambiguous = url.startswith("http:") and urlsplit(url).port != 80  # noqa: PLR2004
    configured = ca is not None or client is not None or skip_verify is not None
    return RegistryHost(
        url=url,
        capabilities=table.capabilities(CAPABILITIES),
        ca=ca or (),
        client=client or (),
        skip_verify=bool(skip_verify),
        headers=table.headers("header"),
        dial_timeout=table.duration("dial_timeout"),
        https_first=ambiguous and configured,
    )


def _table_order(text: str) -> list[str]:
    """The hosts in the order of their `[host."…"]` lines; those that stand inline in another table have none."""
    order: list[str] = []
    for line in _HEADER.findall(text):
        try:
            found = tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue  # a line of a longer string or list
        tables = found.get("host")
        if isinstance(tables, dict):
            order += [url for url in tables if url not in order]
    return order


def _note_unknown(table: Mapping[str, Any], known: frozenset[str], path: Path, where: str) -> None:
    for key in table:
        if key.lower() not in known:
            _note(path, f"key {key!r}{where} is not known; it is ignored, as containerd does")


def _note(path: Path, problem: str) -> None:
    """Say it once: the file is read for every pull."""
    if (str(path), problem) not in _noted and len(_noted) < 1000:  # noqa: PLR2004
        _noted.add((str(path), problem))
        log.warning("a hosts.toml says something without effect", file=str(path), problem=problem)


def _docker_style(folder: Path, upstream: RegistryHost) -> RegistryHost:
    try:
        names = sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise InvalidHostsFile(folder, f"cannot be read: {error.strerror}") from error
    ca = tuple(path for path in names if path.name.endswith(".crt"))
    pairs: list[tuple[Path, Path | None]] = []
    for path in names:
        if path.name.endswith(".cert"):
            key = path.with_name(path.name.removesuffix(".cert") + ".key")
            pairs.append((path, key if key.exists() else None))
    ambiguous = upstream.url.startswith("http:") and urlsplit(upstream.url).port != 80  # noqa: PLR2004
    return replace(
        upstream,
        ca=ca,
        client=tuple(pairs),
        https_first=upstream.https_first or (ambiguous and bool(ca or pairs)),
    )
