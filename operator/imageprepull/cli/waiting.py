"""What commands share that ask for something and wait: for how long, their exit codes, and how they end without an answer."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from imageprepull.kube.access import AccessError
from imageprepull.kube.errors import ApiError
from imageprepull.oci.reference import InvalidReference, Reference

TIMEOUT = 600.0
"""Seconds: longer than the default backoff takes to make a failing image Failed (8 attempts, some 4 min), and time for
an image of tens of GB. kubectl's own 30 s would be over before most images are there."""
DONE, FAILED, TIMED_OUT, BLOCKED, INTERRUPTED = 0, 1, 3, 4, 130
NOT_ASKED = "the API server has not answered yet"
IS_IT_RUNNING = (
    "is it running? If it is, the CRDs may be older than it: apply the files of crds/ of its version"
)
"""For an order that the operator does nothing about. A field that a CRD lacks is lost on the way, and no object tells."""
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


class NothingToDo(Exception):
    """What is asked for cannot be done; the message says why."""


def add_timeout(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--timeout`, in seconds; 0 is for ever. `meaning` is what it does, with {} where the forms of a time go."""
    forms = f"90, 90s, 10m, 1h30m (default {TIMEOUT / 60:.0f}m; 0: never)"
    parser.add_argument(
        "--timeout", type=duration, default=TIMEOUT, metavar="TIME", help=meaning.format(forms)
    )


def duration(text: str) -> float:
    """Seconds of a time as kubectl takes it; a bare number is seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = DURATION.fullmatch(text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def canonical(image: str | None) -> str:
    """How operator and nodes call an image; "" when none is named.

    Raises:
        NothingToDo: it is no image.
    """
    try:
        return Reference.parse(image).canonical if image else ""
    except InvalidReference as error:
        raise NothingToDo(f"{image!r} is no image: {error}") from error


def displaced(annotation: str | None, command: str) -> str:
    """Why an order of a command stands no more, in words; `annotation` is what stands where it was."""
    return f"another {command} has taken this one's place" if annotation else "the order was taken away"


def ended(work: Callable[[], int]) -> int:
    """The exit code of a command's `work`; what keeps it from an answer is printed."""
    try:
        return work()
    except (AccessError, ApiError, NothingToDo) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
