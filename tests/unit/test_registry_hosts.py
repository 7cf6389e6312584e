"""Which hosts serve a registry: hosts.toml as containerd reads it, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imageprepull.registry.errors import ErrorKind
from imageprepull.registry.host import (
    CAPABILITIES,
    InvalidHostsFile,
    RegistryHost,
    default_host,
    is_localhost,
)
from imageprepull.registry.hosts import HostsConfig

REGISTRY = "registry.example"


def lookup(root: Path, text: str, registry: str = REGISTRY) -> list[RegistryHost]:
    write(root, registry, text)
    return HostsConfig([root]).lookup(registry)


def write(root: Path, folder: str, text: str) -> Path:
    (root / folder).mkdir(parents=True)
    path = root / folder / "hosts.toml"
    path.write_text(text)
    return path


# Without a file


@pytest.mark.parametrize(
    ("registry", "url", "https_first", "skip_verify"),
    [
        ("docker.io", "https://registry-1.docker.io/v2", False, False),
        (REGISTRY, "https://registry.example/v2", False, False),
        ("registry.example:5000", "https://registry.example:5000/v2", False, False),
        ("registry.example:80", "https://registry.example:80/v2", False, False),
        ("localhost", "https://localhost/v2", False, True),
        ("localhost:443", "https://localhost:443/v2", False, True),
        ("localhost:80", "http://localhost:80/v2", False, False),
        ("localhost:5000", "http://localhost:5000/v2", True, True),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2", True, True),
        ("127.9.9.9:5000", "http://127.9.9.9:5000/v2", True, True),
        ("[::1]:5000", "http://[::1]:5000/v2", True, True),
        ("[::1]", "https://[::1]/v2", False, True),
        ("localhost.example:5000", "https://localhost.example:5000/v2", False, False),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2", False, False),
    ],
)
def test_a_registry_without_a_file(registry: str, url: str, https_first: bool, skip_verify: bool) -> None:
    expected = RegistryHost(url, https_first=https_first, skip_verify=skip_verify)
    assert default_host(registry) == expected
    assert HostsConfig([Path("/nonexistent")]).lookup(registry) == [expected]
    assert HostsConfig([]).lookup(registry) == [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("::1", True), ("128.0.0.1", False),
     ("localhost.", False), ("[::2]", False), ("", False)],
)  # fmt: skip
def test_loopback_is_told_by_the_spelling(name: str, expected: bool) -> None:
    assert is_localhost(name) is expected


# Order and the upstream


def test_hosts_come_in_the_order_of_the_file_and_the_upstream_last(tmp_path: Path) -> None:
    found = lookup(
        tmp_path,
        """
        [host."https://z.example"]
        [host."http://a.example:5000"]
        [host."https://m.example/prefix/"]
        """,
    )
    assert [host.url for host in found] == [
        "https://z.example/v2",
        "http://a.example:5000/v2",
        "https://m.example/prefix/v2",
        "https://registry.example/v2",
    ]
    assert [host.is_proxy for host in found] == [True, True, True, False]
    assert found[1].name == "a.example:5000"


def test_a_file_of_another_systems_editor_names_the_same_hosts(tmp_path: Path) -> None:
    text = '[host."https://z.example"]\ncapabilities = ["pull"]\n\n[host."https://a.example"] # next\n'
    expected = [host.url for host in lookup(tmp_path / "unix", text)]
    found = lookup(tmp_path / "dos", text.replace("\n", "\r\n"))
    assert [host.url for host in found] == expected
    assert len(expected) == 3
    assert found[0].capabilities == {"pull"}


def test_a_byte_order_mark_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    # containerd 1.6 reads such a file, 2.4 passes over its mirrors.
    with pytest.raises(InvalidHostsFile, match=r"hosts\.toml: is not TOML"):
        lookup(tmp_path, '\ufeff[host."https://m.example"]\n')


def test_a_server_takes_the_place_of_the_upstream(tmp_path: Path) -> None:
    found = lookup(
        tmp_path, 'server = "https://other.example"\ncapabilities = ["pull"]\nskip_verify = true\n'
    )
    assert found == [
        RegistryHost(
            "https://other.example/v2", frozenset({"pull"}), skip_verify=True, is_proxy=True
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "server", ["https://registry.example", "registry.example", "https://registry.example/v2"]
)
def test_a_server_that_is_the_registry_itself_is_no_proxy(tmp_path: Path, server: str) -> None:
    assert lookup(tmp_path, f'server = "{server}"') == [default_host(REGISTRY)]


def test_docker_hub_is_asked_at_its_own_host_and_is_no_proxy(tmp_path: Path) -> None:
    text = (
        'server = "https://registry-1.docker.io"\n[host."http://mirror.example"]\ncapabilities = ["pull"]\n'
    )
    mirror, upstream = lookup(tmp_path, text, "docker.io")
    assert (mirror.is_proxy, upstream.is_proxy) == (True, False)
    assert upstream.url == "https://registry-1.docker.io/v2"
    write(tmp_path / "2", "docker.io", '[host."http://mirror.example"]')
    assert HostsConfig([tmp_path / "2"]).lookup("docker.io")[-1] == default_host("docker.io")


def test_settings_of_the_root_hold_for_the_upstream_only(tmp_path: Path) -> None:
    mirror, upstream = lookup(tmp_path, 'ca = "ca.pem"\n[host."https://m.example"]\n')
    assert mirror.ca == ()
    assert upstream.ca == (tmp_path / REGISTRY / "ca.pem",)


def test_a_file_does_not_change_how_loopback_is_asked(tmp_path: Path) -> None:
    found = lookup(tmp_path, '[host."https://m.example"]', "localhost:5000")
    assert found[-1] == default_host("localhost:5000")


def test_plain_http_with_tls_settings_is_tried_by_https_first(tmp_path: Path) -> None:
    found = lookup(
        tmp_path,
        """
        [host."http://a.example:5000"]
        skip_verify = true
        [host."http://b.example:5000"]
        [host."http://c.example"]
        skip_verify = false
        [host."http://d.example:80"]
        client = "d.pem"
        """,
    )
    assert [host.https_first for host in found[:4]] == [True, False, True, False]


# Capabilities, CAs


def test_capabilities_say_who_is_asked_what(tmp_path: Path) -> None:
    found = lookup(
        tmp_path,
        """
        [host."https://a.example"]
        capabilities = ["pull"]
        [host."https://b.example"]
        capabilities = ["pull", "resolve"]
        [host."https://c.example"]
        capabilities = ["push"]
        [host."https://d.example"]
        """,
    )
    assert [(host.serves(by_tag=True), host.serves(by_tag=False)) for host in found[:4]] == [
        (False, True), (True, True), (False, False), (True, True),
    ]  # fmt: skip
    assert found[3].capabilities == CAPABILITIES


def test_ca_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (one, two, *_) = lookup(
        tmp_path,
        """
        [host."https://a.example"]
        ca = "a.pem"
        [host."https://b.example"]
        ca = ["b.pem", "/etc/ssl/c.pem"]
        """,
    )
    folder = tmp_path / REGISTRY
    assert one.ca == (folder / "a.pem",)
    assert two.ca == (folder / "b.pem", Path("/etc/ssl/c.pem"))


# What is refused


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[host."https://a.example"]\nclient = 1', r"a.example\"\]: 'client' must be"),
        ('[host."https://a.example"]\nclient = [["a", "b", "c"]]', "'client': .* is neither"),
        ('[host."https://a.example"]\nclient = [1]', "'client': 1 is neither"),
        ('[host."https://a.example"]\nclient = [[]]', "'client': .* is neither"),
        ('[host."https://a.example"]\noverride_path = "yes"', "'override_path' must be true or false"),
        ('[host."https://a.example"]\nheader = "x"', "'header' must be a table"),
        ('[host."https://a.example".header]\nx = 1', "'header': 'x' must be"),
        ('[host."https://a.example".header]\nx = "a\\r\\nb"', "'header': 'x' or its value cannot"),
        ('[host."https://a.example".header]\n"x y" = "a"', "'header': 'x y' or its value cannot"),
        ('[host."https://a.example"]\ndial_timeout = "soon"', "'dial_timeout': 'soon' is not a duration"),
        ('[host."https://a.example"]\ndial_timeout = "30"', "'dial_timeout': '30' is not a duration"),
        ('[host."https://a.example"]\ndial_timeout = 30', "'dial_timeout' must be a string"),
        ("dial_timeout = 30", "the root: 'dial_timeout' must be a string"),
        ('server = "https://a"\nhost = 1', "'host' must be tables"),
        ('[host]\n"https://a.example" = 1', "must be a table"),
        ('[host."https://a.example"]\ncapabilities = ["pul"]', "unknown capability 'pul'"),
        ('[host."https://a.example"]\ncapabilities = "pull"', "list of strings"),
        ('[host."https://a.example"]\nskip_verify = "yes"', "true or false"),
        ('[host."https://a.example"]\nca = 1', "'ca' must be"),
        ('[host."https://a.example"]\nca = [["x", "y"]]', "'ca' must be"),
        ('[host."ftp://a.example"]', "must be http"),
        ('[host."https://u:p@a.example"]', "must be http"),
        ('[host."https://a.example?x=1"]', "must be http"),
        ('[host."https://a.example:port"]', "not a URL"),
        ('[host."https://"]', "must be http"),
        ("server = 1", "'server' must be a string"),
        ("not toml", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidHostsFile, match=problem) as caught:
        lookup(tmp_path, text)
    assert str(tmp_path / REGISTRY / "hosts.toml") in str(caught.value)
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.PERMANENT, "InvalidHostsFile")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, REGISTRY, "").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidHostsFile, match="not TOML"):
        HostsConfig([tmp_path]).lookup(REGISTRY)


def test_a_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / REGISTRY / "hosts.toml").mkdir(parents=True)
    with pytest.raises(InvalidHostsFile, match="cannot be read"):
        HostsConfig([tmp_path]).lookup(REGISTRY)


# Folders


@pytest.mark.parametrize("folder", ["registry.example_5000_", "registry.example:5000", "_default"])
def test_a_folder_may_be_spelled_three_ways(tmp_path: Path, folder: str) -> None:
    write(tmp_path, folder, '[host."https://m.example"]')
    found = HostsConfig([tmp_path]).lookup("registry.example:5000")
    assert [host.url for host in found] == ["https://m.example/v2", "https://registry.example:5000/v2"]


def test_the_most_specific_folder_counts(tmp_path: Path) -> None:
    for number, folder in enumerate(["r.example_5_", "r.example:5", "_default"]):
        write(tmp_path, folder, f'[host."https://m{number}.example"]')
    config = HostsConfig([tmp_path])
    assert config.lookup("r.example:5")[0].name == "m0.example"
    assert config.lookup("r.example")[0].name == "m2.example"


def test_the_first_directory_that_knows_the_registry_counts(tmp_path: Path) -> None:
    write(tmp_path / "2", REGISTRY, '[host."https://two.example"]')
    write(tmp_path / "3", REGISTRY, '[host."https://three.example"]')
    dirs = [tmp_path / name for name in "123"]
    assert HostsConfig(dirs).lookup(REGISTRY)[0].name == "two.example"


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, REGISTRY, "")
    config = HostsConfig([tmp_path])
    assert len(config.lookup(REGISTRY)) == 1
    path.write_text('[host."https://m.example"]')
    assert len(config.lookup(REGISTRY)) == 2


def test_dockers_certificates_are_used_where_there_is_no_hosts_toml(tmp_path: Path) -> None:
    folder = tmp_path / REGISTRY
    folder.mkdir()
    for name in ("b.crt", "a.crt", "notes.txt"):
        (folder / name).touch()
    (host,) = HostsConfig([tmp_path]).lookup(REGISTRY)
    assert (host.url, host.ca) == ("https://registry.example/v2", (folder / "a.crt", folder / "b.crt"))
    for name in ("with.cert", "with.key", "both.cert", "other.key"):
        (folder / name).touch()
    (host,) = HostsConfig([tmp_path]).lookup(REGISTRY)
    assert host.client == ((folder / "both.cert", None), (folder / "with.cert", folder / "with.key"))


def test_an_empty_file_counts_as_none(tmp_path: Path) -> None:
    write(tmp_path, REGISTRY, "")
    (tmp_path / REGISTRY / "a.crt").touch()
    (host,) = HostsConfig([tmp_path]).lookup(REGISTRY)
    assert host.ca == (tmp_path / REGISTRY / "a.crt",)


# The keys of a host, and what containerd makes of odd files


def test_client_certificates_come_in_every_shape_that_containerd_takes(tmp_path: Path) -> None:
    found = lookup(
        tmp_path,
        """
        client = "root.pem"
        [host."https://a.example"]
        client = "a.pem"
        [host."https://b.example"]
        client = ["b1.pem", "/etc/b2.pem"]
        [host."https://c.example"]
        client = [["c.cert", "c.key"], ["d.pem", ""], ["e.pem"]]
        """,
    )
    folder = tmp_path / REGISTRY
    assert [host.client for host in found] == [
        ((folder / "a.pem", None),),
        ((folder / "b1.pem", None), (Path("/etc/b2.pem"), None)),
        ((folder / "c.cert", folder / "c.key"), (folder / "d.pem", None), (folder / "e.pem", None)),
        ((folder / "root.pem", None),),
    ]


def test_headers_are_strings_or_lists_and_never_shown(tmp_path: Path) -> None:
    mirror, upstream = lookup(
        tmp_path,
        """
        [host."https://a.example"]
        [host."https://a.example".header]
        authorization = "Basic c2VjcmV0"
        x-custom = ["one", "two"]
        """,
    )
    assert mirror.headers == (("authorization", "Basic c2VjcmV0"), ("x-custom", "one, two"))
    assert upstream.headers == ()
    assert "c2VjcmV0" not in repr(mirror)


def test_dial_timeouts_are_durations_of_go(tmp_path: Path) -> None:
    found = lookup(
        tmp_path,
        """
        dial_timeout = "1m30s"
        [host."https://a.example"]
        dial_timeout = "500ms"
        [host."https://b.example"]
        dial_timeout = "0"
        [host."https://c.example"]
        dial_timeout = ""
        """,
    )
    assert [host.dial_timeout for host in found] == [0.5, None, None, 90]


@pytest.mark.parametrize(
    ("url", "override", "path"),
    [
        ("https://a.example", False, "/v2"),
        ("https://a.example/", False, "/v2"),
        ("https://a.example/v2/", False, "/v2"),
        ("https://a.example//x/../y/", False, "/y/v2"),
        ("https://a.example/v2/ns", False, "/v2/ns/v2"),
        ("https://a.example/v2/ns", True, "/v2/ns"),
        ("https://a.example/api/docker/repo/", True, "/api/docker/repo"),
        ("https://a.example", True, ""),
    ],
)
def test_v2_is_appended_as_containerd_does(tmp_path: Path, url: str, override: bool, path: str) -> None:
    text = f'[host."{url}"]\noverride_path = {str(override).lower()}'
    assert lookup(tmp_path, text)[0].url == f"https://a.example{path}"


def test_unknown_keys_are_ignored_as_containerd_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'surprise = 1\n[host."https://a.example"]\ncapabilites = ["push"]\n'
    assert lookup(tmp_path, text) == [
        RegistryHost("https://a.example/v2", is_proxy=True), default_host(REGISTRY)
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "capabilites" in said
    HostsConfig([tmp_path]).lookup(REGISTRY)
    assert capsys.readouterr().out == "", "once, though the file is read for every pull"


def test_keys_match_in_any_case(tmp_path: Path) -> None:
    assert lookup(tmp_path, '[host."https://a.example"]\nSkip_Verify = true')[0].skip_verify


def test_a_host_without_a_table_of_its_own_is_not_seen(tmp_path: Path) -> None:
    text = '[host]\n"https://inline.example" = { skip_verify = true }\n[host."https://a.example"]\n'
    assert [host.name for host in lookup(tmp_path, text)] == ["a.example", REGISTRY]


def test_a_host_with_a_header_table_only_is_seen_once_and_in_its_place(tmp_path: Path) -> None:
    text = """
    [host."https://a.example".header]
    x = "y"
    [ host . 'https://b.example' ]   # spelled otherwise
    [host."https://a.example"]
    skip_verify = true
    """
    found = lookup(tmp_path, text)
    assert [host.name for host in found] == ["a.example", "b.example", REGISTRY]
    assert (found[0].headers, found[0].skip_verify) == ((("x", "y"),), True)


def test_capabilities_are_all_where_the_list_is_empty_or_the_server_is_not_named(tmp_path: Path) -> None:
    mirror, upstream = lookup(
        tmp_path, 'capabilities = ["push"]\n[host."https://a.example"]\ncapabilities = []'
    )
    assert mirror.capabilities == upstream.capabilities == CAPABILITIES
    assert lookup(tmp_path / "2", 'server = "https://b.example"\ncapabilities = ["Pull"]')[
        0
    ].capabilities == {"pull"}


def test_an_empty_server_is_the_registry_itself(tmp_path: Path) -> None:
    assert lookup(tmp_path, 'server = ""') == [default_host(REGISTRY)]


@pytest.mark.parametrize("folder", ["[fd00::1]_5000_", "[fd00::1]:5000"])
def test_ipv6_registries_and_hosts(tmp_path: Path, folder: str) -> None:
    write(tmp_path, folder, '[host."http://[fd00::2]:5000"]\n[host."https://[fd00::3]/x"]')
    found = HostsConfig([tmp_path]).lookup("[fd00::1]:5000")
    assert [host.url for host in found] == [
        "http://[fd00::2]:5000/v2", "https://[fd00::3]/x/v2", "https://[fd00::1]:5000/v2"
    ]  # fmt: skip
    assert found[0].name == "[fd00::2]:5000"


def test_what_has_not_changed_is_not_parsed_again(tmp_path: Path) -> None:
    path = write(tmp_path, REGISTRY, '[host."https://a.example"]')
    for entry in (path, path.parent):
        os.utime(entry, (1, 1))
    config = HostsConfig([tmp_path])
    config._known.limit = 1
    first = config.lookup(REGISTRY)
    path.write_text('[host."https://b.example"]')
    os.utime(path, (1, 1))
    assert config.lookup(REGISTRY)[0].name == "b.example", "the time of its last change cannot be set"
    assert first[0].name == "a.example"
