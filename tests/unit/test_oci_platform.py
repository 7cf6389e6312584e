"""The manifest of an index that containerd would take, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageprepull.oci.descriptor import OCI_MANIFEST, Descriptor
from imageprepull.oci.platform import (
    InvalidPlatform,
    NoMatchingPlatform,
    Platform,
    check_platform,
    preferences,
    rank,
)
from imageprepull.oci.selection import select

ATTESTATION = {"vnd.docker.reference.type": "attestation-manifest"}


def entry(
    platform: str | Platform | None, number: int = 0, annotations: dict[str, str] | None = None
) -> Descriptor:
    if isinstance(platform, str):
        system, architecture, *variant = platform.split("/")
        platform = Platform(system, architecture, "".join(variant))
    return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, platform, annotations or {})


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armv7l", "linux/arm/v7"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_platforms_have_one_spelling(text: str, normal: str) -> None:
    found = Platform.parse(text)
    assert str(found) == normal
    assert found.normalized() == found


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64\n"]
)
def test_other_text_is_no_platform(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="os/architecture"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/x86_64"], 0),
        ("linux/amd64", ["linux/amd64/v1"], 0),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v2"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"], 2),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/386", ["linux/amd64"], None),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm64/v9", ["linux/arm64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm", ["linux/arm"], 0),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", None, None], 1),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["unknown/unknown"], None),
        ("linux/amd64", [], None),
    ],
)
def test_the_choice_of_an_index(wanted: str, offered: list[str | None], chosen: int | None) -> None:
    manifests = [entry(platform, number) for number, platform in enumerate(offered)]
    if chosen is None:
        with pytest.raises(NoMatchingPlatform):
            select(manifests, Platform.parse(wanted))
    else:
        assert select(manifests, Platform.parse(wanted)) is manifests[chosen]


def test_attestations_are_never_chosen_nor_listed() -> None:
    attested = [entry(None, 1, ATTESTATION), entry("linux/amd64", 2, ATTESTATION), entry("linux/s390x", 3)]
    with pytest.raises(NoMatchingPlatform) as caught:
        select(attested, Platform.parse("linux/amd64"))
    assert caught.value.available == ("linux/s390x",)


def test_an_image_for_features_that_the_node_does_not_have_is_passed_over() -> None:
    special = entry(Platform("linux", "amd64", os_features=("erofs",)), 1)
    plain = entry("linux/amd64", 2)
    assert select([special, plain], Platform.parse("linux/amd64")) is plain
    node = Platform("linux", "amd64", os_features=("erofs", "more"))
    assert select([special, plain], node) is special


def test_the_error_lists_what_there_is_and_stays_short() -> None:
    many = [entry(f"linux/arch{number}", number) for number in range(100)]
    with pytest.raises(NoMatchingPlatform, match=r"not there for linux/amd64; it has linux/arch0.*80 more"):
        select(many, Platform.parse("linux/amd64"))
    with pytest.raises(NoMatchingPlatform, match="no platform at all"):
        select([], Platform.parse("linux/amd64"))


def test_the_config_of_a_single_manifest_must_run_here() -> None:
    check_platform(Platform("linux", "386"), Platform.parse("linux/amd64"))
    for other in (Platform("linux", "arm64"), Platform("", ""), Platform("linux", "amd64", "v3")):
        with pytest.raises(NoMatchingPlatform):
            check_platform(other, Platform.parse("linux/amd64"))


def test_the_host_has_a_variant_on_32_bit_arm_only() -> None:
    host = Platform.host()
    assert host.os
    assert (host.variant != "") == (host.architecture == "arm")


def test_what_runs_on_a_platform_best_first() -> None:
    def listed(text: str) -> list[str]:
        return [str(found) for found in preferences(Platform.parse(text))]

    assert listed("linux/amd64/v3") == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
    assert listed("linux/arm64") == [
        "linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5",
    ]  # fmt: skip
    assert listed("linux/s390x") == ["linux/s390x"]


platforms = st.builds(
    Platform,
    st.sampled_from(["linux", "windows", "", "macos"]),
    st.sampled_from(["amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "386", "", "riscv64"]),
    st.one_of(st.sampled_from(["", "v1", "v2", "v7", "v8", "v9.3", "8", "v99"]), st.text(max_size=5)),
)


@settings(deadline=None)  # other work on the machine is no failure
@given(platforms)
def test_normalising_twice_changes_nothing(platform: Platform) -> None:
    assert platform.normalized().normalized() == platform.normalized()


@settings(deadline=None)  # other work on the machine is no failure
@given(platforms, st.lists(platforms, max_size=6))
def test_the_choice_is_the_first_of_the_best(wanted: Platform, offered: list[Platform]) -> None:
    manifests = [entry(platform, number) for number, platform in enumerate(offered)]
    ranks = [rank(platform, wanted) for platform in offered]
    fitting = [place for place in ranks if place is not None]
    if not fitting:
        with pytest.raises(NoMatchingPlatform):
            select(manifests, wanted)
    else:
        assert select(manifests, wanted) is manifests[ranks.index(min(fitting))]
