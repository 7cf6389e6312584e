"""When an ImagePrepull counts as deleted: the state machine behind every withdrawal of images. Pure.

`removals.py` does the reading around it. A uid is gone for one of two witnessed causes (the third, an object that
exists and no longer names an image, is `render`'s):

(a) the watch delivered its deletion, and a quorum GET of that uid then found nothing;
(c) a list did not show it, and two quorum GETs, `interval` seconds apart, found nothing.

Both count only while both CRDs are Established, are not being deleted, are the same objects as before (a CRD that
was deleted and made anew took every object with it, and nobody ordered that), and while all caches are synced.
(c) stops when it concerns more than one object and more than a tenth of those known, or any at all whose kind was
made anew meanwhile, until an administrator approves exactly that set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

MASS_SHARE = 0.1


class Cause(Enum):
    """Why a uid is suspected to be gone."""

    DELETED_EVENT = "a"
    MISSING_AFTER_GAP = "c"


@dataclass(slots=True)
class Suspect:
    """A uid that may be gone. `first_missing` is the time of the first GET that found nothing (cause c)."""

    uid: str
    namespace: str
    name: str
    cause: Cause
    first_missing: float | None = None
    confirmed: bool = False


class Witness:
    """What was seen of deletions. Time is the caller's, in monotonic seconds."""

    def __init__(self, *, interval: float = 30) -> None:
        self._interval = interval
        self._suspects: dict[str, Suspect] = {}
        self._gone: set[str] = set()
        self._told: dict[str, float] = {}
        """When the watch told of a deletion, by uid. An answer that was asked before that may show what was."""

    def __repr__(self) -> str:
        suspects = ", ".join(
            f"{one.uid}:{one.cause.value}{'!' if one.confirmed else ''}" for one in self._suspects.values()
        )
        return f"<Witness suspects=[{suspects}] gone={sorted(self._gone)}>"

    @property
    def gone(self) -> frozenset[str]:
        """The uids that are gone for good; their entries may be withdrawn."""
        return frozenset(self._gone)

    def deleted(self, uid: str, namespace: str, name: str, *, now: float = -inf) -> None:
        """The watch delivered the deletion of this uid. It replaces a weaker suspicion."""
        self._told[uid] = now
        if uid not in self._gone:
            self._suspects[uid] = Suspect(uid, namespace, name, Cause.DELETED_EVENT)

    def seen(self, uid: str, *, asked: float = inf) -> bool:
        """The object was read alive, by a request sent at `asked`. One that was gone is back: a backup was restored.

        Whether that says anything: not when the watch has told of its deletion since.
        """
        if asked < self._told.get(uid, -inf):
            return False
        self._told.pop(uid, None)
        self._suspects.pop(uid, None)
        self._gone.discard(uid)
        return True

    def listed(
        self, present: Iterable[str], referenced: Mapping[str, tuple[str, str]], *, asked: float = inf
    ) -> None:
        """A complete quorum list showed `present`; `referenced` maps the other uids we know to (namespace, name)."""
        alive = set(present)
        for uid in alive:
            self.seen(uid, asked=asked)
        for uid, (namespace, name) in referenced.items():
            if uid not in alive and uid not in self._gone and uid not in self._suspects:
                self._suspects[uid] = Suspect(uid, namespace, name, Cause.MISSING_AFTER_GAP)

    def forget(self, referenced: Iterable[str]) -> None:
        """Drop gone uids that no NodePrepull names any more."""
        self._gone &= set(referenced)
        for uid in self._told.keys() - self._gone - self._suspects.keys():
            del self._told[uid]

    def due(self, now: float) -> list[Suspect]:
        """The suspects that need a quorum GET now."""
        return [
            one
            for one in self._suspects.values()
            if not one.confirmed and (one.first_missing is None or now >= one.first_missing + self._interval)
        ]

    @property
    def waiting(self) -> bool:
        """Whether a confirmed suspicion waits for `release`."""
        return any(one.confirmed for one in self._suspects.values())

    @property
    def settled(self) -> bool:
        """Whether nobody is suspected to be gone."""
        return not self._suspects

    @property
    def missing(self) -> bool:
        """Whether anything is suspected to have vanished unseen."""
        return any(one.cause is Cause.MISSING_AFTER_GAP for one in self._suspects.values())

    def read(self, uid: str, *, found: bool, trusted: bool, now: float, asked: float = inf) -> None:
        """The answer of a quorum GET that was sent at `asked`. `trusted`: CRDs and caches were in order after it was asked."""
        suspect = self._suspects.get(uid)
        if suspect is None:
            return
        if found:
            self.seen(uid, asked=asked)
        elif not trusted:
            # Both reads of cause (c) must happen while the absence means something.
            suspect.first_missing = None
        elif suspect.cause is Cause.DELETED_EVENT:
            del self._suspects[uid]
            self._gone.add(uid)
        elif suspect.first_missing is None:
            suspect.first_missing = now
        elif now >= suspect.first_missing + self._interval:
            suspect.confirmed = True

    def release(self, *, alive: int, approved: str = "", remade: bool = False) -> Held | None:
        """Let confirmed (c) suspects go, unless they are too many at once. `alive`: objects known to exist.

        `remade`: the CRD is not known to be the one that they were objects of, and may have taken them with it. All
        that are missing are counted, confirmed or not, so that a wipe is not let through one by one.
        """
        missing = [one for one in self._suspects.values() if one.cause is Cause.MISSING_AFTER_GAP]
        confirmed = [one for one in missing if one.confirmed]
        if not confirmed:
            return None
        too_many = len(missing) > 1 and len(missing) > MASS_SHARE * (alive + len(missing))
        if too_many or remade:
            held = Held.of(missing, alive + len(missing), remade=remade)
            if approved != held.token:
                return held
        for one in confirmed:
            del self._suspects[one.uid]
            self._gone.add(one.uid)
        return None


@dataclass(frozen=True, slots=True)
class Held:
    """Removals that wait for an administrator. `token` stands for exactly this set of uids.

    `remade`: their CRD may have been deleted under them.
    """

    token: str
    count: int
    known: int
    examples: tuple[str, ...]
    remade: bool = False

    @classmethod
    def of(cls, suspects: Iterable[Suspect], known: int, *, remade: bool = False) -> Held:
        """Describe a set of suspects."""
        ordered = sorted(suspects, key=lambda one: one.uid)
        token = hashlib.sha256("\n".join(one.uid for one in ordered).encode()).hexdigest()[:12]
        examples = tuple(f"{one.namespace}/{one.name}" for one in ordered[:3])
        return cls(token, len(ordered), known, examples, remade)

    def __str__(self) -> str:
        how = "vanished unseen, maybe with their CRD" if self.remade else "vanished unseen"
        more = "…" if self.count > len(self.examples) else ""
        return (
            f"{self.count} of {self.known} ImagePrepulls {how} ({', '.join(self.examples)}{more}); their images "
            f"stay until this is approved"
        )
