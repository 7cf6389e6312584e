"""What follows a failure, and what waits for a daemon that is being restarted."""

from __future__ import annotations

import pytest

from imageprepull.pulling import cleanup
from imageprepull.pulling.cleanup import patiently
from imageprepull.runtime.errors import NotFound, Unavailable

AWAY = Unavailable("drop the lease", "nobody listens")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_DAEMON_POLL", 0.001)


class Work:
    """Fails with these errors, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    async def do(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_an_absent_daemon_is_waited_for() -> None:
    group = BaseExceptionGroup("two blobs", [AWAY, AWAY])
    assert await patiently(Work(AWAY, group, AWAY).do, 10) == "done"


async def test_it_is_not_waited_for_too_long() -> None:
    work = Work(*[AWAY] * 1000)
    with pytest.raises(Unavailable):
        await patiently(work.do, 0.02)
    assert len(work.errors) < 999


@pytest.mark.parametrize(
    "error", [NotFound("stat", "gone"), BaseExceptionGroup("", [NotFound("stat", "gone")])]
)
async def test_other_errors_are_none_of_its_business(error: BaseException) -> None:
    work = Work(error, error)
    with pytest.raises(type(error)):
        await patiently(work.do, 10)
    assert len(work.errors) == 1
