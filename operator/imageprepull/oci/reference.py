"""Image references, normalised as containerd and the kubelet do, so that records carry the names they look for.

The rules are those of `ParseDockerRef` in github.com/distribution/reference. Imported by the command line
before anything else: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from imageprepull.oci.digests import InvalidDigest, check_digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
MAX_PATH = 255

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class InvalidReference(ValueError):
    """Text that names no image; the message quotes it and says what is wrong."""

    def __init__(self, text: str, problem: str) -> None:
        shown = text if len(text) <= MAX_PATH else text[:MAX_PATH] + "…"
        super().__init__(f"invalid image reference {shown!r}: {problem}")
        self.text = text
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Reference:
    """An image as the user named it and as containerd names it.

    Exactly one of `tag` and `digest` is set: a digest drops the tag, as the kubelet reads it.
    Two spellings of one image are equal; `original` does not take part.
    """

    original: str = field(compare=False)
    domain: str
    path: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Normalise a reference: `nginx` is `docker.io/library/nginx:latest`.

        Raises:
            InvalidReference: the only error, whatever the text is.
        """
        if not text:
            raise InvalidReference(text, "it is empty")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(text, "64 hex digits are an image ID, not a name")
        domain, remainder = _split_domain(text)
        name, separator, digest = remainder.partition("@")
        path, has_tag, tag = name.partition(":")
        if not _DOMAIN.fullmatch(domain):
            raise InvalidReference(text, f"{domain!r} is not a registry's host and port")
        _check_path(text, path)
        if has_tag and not _TAG.fullmatch(tag):
            raise InvalidReference(
                text, f"{tag!r} is not a tag: at most 128 of letters, digits, '_', '.' and '-'"
            )
        if separator:
            try:
                check_digest(digest)
            except InvalidDigest as error:
                raise InvalidReference(text, str(error)) from None
            return cls(text, domain, path, None, digest)
        return cls(text, domain, path, tag or DEFAULT_TAG, None)

    @property
    def name(self) -> str:
        """The repository with its registry: `docker.io/library/nginx`."""
        return f"{self.domain}/{self.path}"

    @property
    def registry(self) -> str:
        """The registry's host and port as the reference has them; hosts.toml folders are named by it."""
        return self.domain

    @property
    def canonical(self) -> str:
        """The reference as containerd records it: `name@digest`, or else `name:tag`."""
        return self.digest_record(self.digest) if self.digest else f"{self.name}:{self.tag}"

    @property
    def tag_record(self) -> str | None:
        """The name of the image record by tag; None when a digest was given: then no tag record is made."""
        return None if self.digest else f"{self.name}:{self.tag}"

    def digest_record(self, digest: str) -> str:
        """The name of the image record by digest."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        return self.canonical


def repository_of(reference: str) -> str:
    """A canonical reference without its tag or digest."""
    name = reference.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    return repository if colon and "/" not in tag else name


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, f"library/{text}"
    if first in ("index.docker.io", DEFAULT_DOMAIN):
        return DEFAULT_DOMAIN, rest if "/" in rest else f"library/{rest}"
    if first == "localhost" or "." in first or ":" in first or first.lower() != first:
        return first, rest
    return DEFAULT_DOMAIN, text


def _check_path(text: str, path: str) -> None:
    if path != path.lower():
        raise InvalidReference(text, f"the repository {path!r} must be lower case")
    if len(path) > MAX_PATH:
        raise InvalidReference(
            text, f"the repository has {len(path)} characters, at most {MAX_PATH} are allowed"
        )
    for component in path.split("/"):
        if not _PATH_COMPONENT.fullmatch(component):
            raise InvalidReference(
                text,
                f"{component!r} in the repository is not made of letters and digits, separated by '.', '_', '__' or '-'",
            )
