"""What to show of nested exception groups."""

from __future__ import annotations


def leaf(group: BaseException) -> BaseException:
    """The first exception in nested groups: one cause is what a log can show."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
