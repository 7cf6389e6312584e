"""What people order by an annotation: a word of their own, and what it is about. Shared by repairs and retries. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping


class InvalidOrder(ValueError):
    """An annotation that says nothing; the message says why."""


def word_and_rest(annotations: Mapping[str, str], annotation: str, longest: int) -> tuple[str, str] | None:
    """The word that an annotation begins with, of at most `longest` characters, and what follows it; None without one.

    Raises:
        InvalidOrder: it does not begin with such a word.
    """
    text = annotations.get(annotation)
    if text is None:
        return None
    nonce, _, rest = text.strip().partition(" ")
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{longest - 1}}}", nonce):
        raise InvalidOrder(
            f"{annotation} must begin with a word of at most {longest} letters, digits, '.', '_' and '-', "
            f"not {nonce[:80]!r}"
        )
    return nonce, rest.strip()
