"""References are read as containerd and the kubelet read them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imageprepull.oci.reference import InvalidReference, Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("library/nginx", "docker.io/library/nginx:latest"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/team/app:v1", "docker.io/team/app:v1"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        ("registry-1.docker.io/library/nginx", "registry-1.docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("myhost:5000/app:1", "myhost:5000/app:1"),
        ("myhost/app", "docker.io/myhost/app:latest"),
        ("MyHost/app", "MyHost/app:latest"),
        ("registry.example/app", "registry.example/app:latest"),
        ("registry.example/a/b/c/d:x", "registry.example/a/b/c/d:x"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
        ("127.0.0.1:5000/a__b/c-d/e.f/g---h", "127.0.0.1:5000/a__b/c-d/e.f/g---h:latest"),
        ("app:UPPER_tag.1-x", "docker.io/library/app:UPPER_tag.1-x"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1.27@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"localhost:5000/a@{DIGEST}", f"localhost:5000/a@{DIGEST}"),
        (f"library/{HEX}", f"docker.io/library/{HEX}:latest"),
        (f"{HEX}:1", f"docker.io/library/{HEX}:1"),
    ],
)
def test_a_reference_is_normalised(text: str, canonical: str) -> None:
    found = Reference.parse(text)
    assert found.canonical == canonical
    assert str(found) == canonical
    assert found.original == text
    assert Reference.parse(canonical) == found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (HEX, "image ID"),
        ("Nginx", "lower case"),
        ("registry.example/Team/app", "lower case"),
        ("nginx:", "not a tag"),
        ("nginx:.x", "not a tag"),
        ("nginx:" + "x" * 129, "128"),
        ("nginx@", "not a digest"),
        ("nginx@sha256:abc", "not a digest"),
        (f"nginx@SHA256:{HEX}", "sha256"),
        (f"nginx@sha256:{HEX.upper()}", "not a digest"),
        ("nginx@sha512:" + "a" * 128, "only sha256"),
        ("registry.example/", "made of"),
        ("/nginx", "made of"),
        ("a//b", "made of"),
        ("a/_b", "made of"),
        ("a/b_", "made of"),
        ("a/b..c", "made of"),
        ("a/b___c", "made of"),
        ("-host.example/a", "host and port"),
        ("host.example:port/a", "host and port"),
        ("host.example:/a", "host and port"),
        ("https://registry.example/app", "host and port"),
        ("ngi nx", "made of"),
        ("nginx\n", "made of"),
        ("nginx:1\n", "not a tag"),
        (f"nginx@{DIGEST}\n", "not a digest"),
        ("nginx:1:2", "not a tag"),
        ("registry.example/" + "a" * 256, "at most 255"),
        ("ngïnx", "made of"),
    ],
)
def test_what_names_no_image_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(InvalidReference, match=problem) as caught:
        Reference.parse(text)
    assert caught.value.text == text
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 700


def test_the_records_of_a_tag() -> None:
    found = Reference.parse("localhost:5000/team/app:1")
    assert (found.domain, found.registry, found.path) == ("localhost:5000", "localhost:5000", "team/app")
    assert (found.name, found.tag, found.digest) == ("localhost:5000/team/app", "1", None)
    assert found.tag_record == "localhost:5000/team/app:1"
    assert found.digest_record(DIGEST) == f"localhost:5000/team/app@{DIGEST}"


def test_a_digest_drops_the_tag() -> None:
    found = Reference.parse(f"app:1@{DIGEST}")
    assert (found.tag, found.digest, found.tag_record) == (None, DIGEST, None)


def test_spellings_of_one_image_are_equal() -> None:
    assert len({Reference.parse(text) for text in ("nginx", "docker.io/nginx", "library/nginx:latest")}) == 1


word = st.from_regex(r"[a-z0-9]{1,4}([._-][a-z0-9]{1,4}){0,2}", fullmatch=True)
domains = st.sampled_from(
    ["", "localhost/", "localhost:5000/", "r.example/", "r.example:1/", "[::1]:5/", "A/"]
)
suffixes = st.one_of(
    st.just(""),
    st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.from_regex(r"(:[a-z0-9]{1,5})?@sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(domains, st.lists(word, min_size=1, max_size=4), suffixes)
def test_the_canonical_form_is_a_fixed_point(domain: str, path: list[str], suffix: str) -> None:
    assume(domain or len(path) == 1 or "." not in path[0])  # else that is the domain
    found = Reference.parse(domain + "/".join(path) + suffix)
    again = Reference.parse(found.canonical)
    assert again == found
    assert again.canonical == found.canonical


@given(st.one_of(st.text(), st.text(alphabet="aZ0./:@-_[] \n", max_size=40)))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(found.canonical) == found
