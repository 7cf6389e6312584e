from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.accounts import Accounts, Delays
from imageprepull.agent.backoff import LONGEST_RETRY_AFTER, Backoff, Failure, Pace, after_failure
from imageprepull.agent.image import ImageView
from imageprepull.agent.plan import Key, Observed, key_of, next_due, plan
from imageprepull.resources.nodeprepull import Desired, DesiredImage
from tests.unit.agent_doubles import StillClock, image

NOW = 100.0
KEYS = [(reference, f"sha256:{digest * 64}") for reference in "abcde" for digest in "12"]


def replace_pin(entry: DesiredImage, pin: bool) -> DesiredImage:
    return msgspec.structs.replace(entry, pin=pin)


entries = st.builds(
    lambda key, state, priority, parallel, pin, repair: replace_pin(
        image(key[0], digest=key[1], state=state, priority=priority, parallel=parallel, repair=repair),
        pin,
    ),
    st.sampled_from(KEYS),
    st.sampled_from(list(Desired)),
    st.integers(-2, 2),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["", "now"]),
)
specs = st.lists(entries, max_size=6, unique_by=key_of)
keys = st.sets(st.sampled_from(KEYS), max_size=4)
observations = st.builds(
    Observed,
    present=st.dictionaries(st.sampled_from(KEYS), st.booleans()),
    running=keys,
    due=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([50.0, 100.0, 150.0])),
    final=keys,
    released=keys,
    pinned=keys,
    repaired=keys,
    verifying=st.booleans(),
    pin_due=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([50.0, 100.0, 150.0])),
)


@given(specs, observations)
def test_only_what_is_present_and_idle_is_compared_and_one_at_a_time(
    spec: list[DesiredImage], observed: Observed
) -> None:
    wanted = {key_of(i): i for i in spec}
    compared = plan(spec, observed, NOW).verify
    assert len(compared) <= (0 if observed.verifying else 1)
    for key in compared:
        assert wanted[key].state is Desired.PRESENT
        assert wanted[key].repair
        assert observed.present[key]
        assert key not in observed.running | observed.repaired


@given(specs, observations)
def test_never_more_pulls_than_the_strictest_limit(spec: list[DesiredImage], observed: Observed) -> None:
    actions = plan(spec, observed, NOW)
    in_work = [i for i in spec if key_of(i) in actions.start or key_of(i) in observed.running]
    if actions.start:
        limit = min(i.limits.parallel_images for i in in_work if i.state is Desired.PRESENT)
        assert len(observed.running) + len(actions.start) <= limit


@given(specs, observations)
def test_only_missing_present_due_entries_are_started(spec: list[DesiredImage], observed: Observed) -> None:
    wanted = {key_of(i): i for i in spec}
    for key in plan(spec, observed, NOW).start:
        assert wanted[key].state is Desired.PRESENT
        assert observed.present[key] is False
        assert key not in observed.running
        assert observed.due.get(key, NOW) <= NOW
        assert not any(other[0] == key[0] for other in observed.running)


@given(specs, observations)
def test_only_entries_that_say_so_are_unpinned(spec: list[DesiredImage], observed: Observed) -> None:
    absent = {key_of(i) for i in spec if i.state is Desired.ABSENT} - observed.released
    wanted = {i.digest for i in spec if i.pin and i.state is not Desired.ABSENT}
    unwanted = {
        key_of(i) for i in spec if i.state is not Desired.ABSENT and not i.pin and i.digest not in wanted
    } & observed.pinned
    assert set(plan(spec, observed, NOW).unpin) <= (absent | unwanted) - observed.running


@given(specs, observations, st.sets(st.sampled_from(KEYS)))
def test_what_lacks_nothing_but_our_labels_gets_them_and_is_not_pulled(
    spec: list[DesiredImage], observed: Observed, lacking: set[Key]
) -> None:
    present = {**observed.present, **dict.fromkeys(lacking, True)}
    actions = plan(spec, replace(observed, present=present, unmarked=lacking), NOW)
    assert not set(actions.start) & lacking
    expected = {
        key_of(entry)
        for entry in spec
        if entry.state is not Desired.ABSENT
        and key_of(entry) in lacking - observed.running
        and observed.pin_due.get(key_of(entry), NOW) <= NOW
        and entry.digest not in {digest for _, digest in observed.removing}
    }
    assert set(actions.pin) == expected


def test_a_pin_that_is_no_longer_wanted_is_taken_from_a_present_image() -> None:
    entry = replace_pin(image("a"), pin=False)
    key = key_of(entry)
    held = Observed(present={key: True}, running=frozenset(), due={}, pinned=frozenset({key}))
    assert plan([entry], held, NOW).unpin == (key,)
    paused = replace_pin(image("a", state=Desired.PAUSED), pin=False)
    assert plan([paused], held, NOW).unpin == (key,), "pins yield to disk pressure there as well"
    assert plan([replace_pin(entry, pin=True)], held, NOW).unpin == ()
    other = replace_pin(image("b", digest=entry.digest), pin=True)
    assert plan([entry, other], held, NOW).unpin == (), "they share the ID's record"


@given(observations)
def test_an_empty_spec_orders_nothing(observed: Observed) -> None:
    actions = plan([], observed, NOW)
    assert (actions.start, actions.stop, actions.unpin) == ((), (), ())


@given(specs, observations)
def test_a_running_pull_that_is_still_wanted_is_never_stopped(
    spec: list[DesiredImage], observed: Observed
) -> None:
    present = {key_of(i) for i in spec if i.state is Desired.PRESENT}
    stopped = set(plan(spec, observed, NOW).stop)
    assert not stopped & present
    assert stopped <= observed.running


@given(specs, observations)
def test_higher_priority_never_waits_for_lower(spec: list[DesiredImage], observed: Observed) -> None:
    actions = plan(spec, observed, NOW)
    wanted = {key_of(i): i for i in spec}
    priorities = [wanted[key].priority for key in actions.start]
    assert priorities == sorted(priorities, reverse=True)


@given(specs, observations)
def test_without_running_pulls_something_startable_is_started(
    spec: list[DesiredImage], observed: Observed
) -> None:
    idle = replace(observed, running=frozenset())
    startable = [
        i
        for i in spec
        if i.state is Desired.PRESENT
        and idle.present.get(key_of(i)) is False
        and idle.due.get(key_of(i), NOW) <= NOW
    ]
    assert bool(startable) == bool(plan(spec, idle, NOW).start)


def test_failed_images_come_after_their_equals() -> None:
    spec = [image("failed", parallel=1), image("fresh", parallel=1)]
    missing: dict[Key, bool] = {key_of(i): False for i in spec}
    observed = Observed(missing, frozenset(), {key_of(spec[0]): 50}, {key_of(spec[0])})
    assert [key[0] for key in plan(spec, observed, NOW).start] == ["fresh"]


def test_the_next_moment_is_that_of_the_first_due_image_that_is_wanted() -> None:
    spec = [image("a"), image("b"), image("paused", state=Desired.PAUSED)]
    due = {key_of(spec[0]): 130.0, key_of(spec[1]): 120.0, key_of(spec[2]): 110.0, ("gone", ""): 105.0}
    assert next_due(spec, Observed({}, frozenset(), due), NOW) == 20
    assert next_due([], Observed({}, frozenset(), due), NOW) is None


def test_what_has_become_due_since_a_step_began_is_due_at_once_and_what_it_has_seen_to_waits_for_others() -> (
    None
):
    spec = [image("seen"), image("since"), image("later")]
    due = {key_of(spec[0]): 90.0, key_of(spec[1]): 95.0, key_of(spec[2]): 120.0}
    assert next_due(spec, Observed({}, frozenset(), due), NOW) == 20
    assert next_due(spec, Observed({}, frozenset(), due), NOW, began=90) == 0
    repair = Observed({}, frozenset(), {}, repair_due=due)
    assert next_due(spec, repair, NOW, began=90) == 0
    assert next_due(spec, repair, NOW, began=95) == 20


DEADLINES = ("due", "repair_due", "pin_due", "unpin_due")


@pytest.mark.parametrize("deadline", DEADLINES)
@given(spec=specs, seen=observations)
def test_time_alone_makes_nothing_due_before_the_next_step(
    deadline: str, spec: list[DesiredImage], seen: Observed
) -> None:
    """What no event tells is done when it is due, or it waits for the next resync."""
    passed, coming = dict.fromkeys(KEYS, NOW - 5), dict.fromkeys(KEYS, NOW + 5)
    due = {name: coming if name == deadline else passed for name in DEADLINES}
    observed = replace(
        seen,
        due=due["due"],
        repair_due=due["repair_due"],
        pin_due=due["pin_due"],
        unpin_due=due["unpin_due"],
        pinned=set(KEYS),
        unmarked=set(KEYS),
    )
    wait = next_due(spec, observed, NOW)
    if plan(spec, observed, NOW + 5) != plan(spec, observed, NOW):
        assert wait == 5


limits = st.integers(1, 20)
chances = st.floats(0, 1, exclude_max=True)


def grown(attempts: int, uniform: float, pace: Pace) -> float:
    previous = Backoff(attempts - 1, False, "", "", 0) if attempts > 1 else None
    return after_failure(previous, Failure("Any", ""), limit=attempts + 1, pace=pace, uniform=uniform).delay


@given(st.integers(1, 5000), chances)
def test_delays_grow_and_stay_bounded(attempts: int, uniform: float) -> None:
    pace = Pace(2, 300, 900)
    assert 1 <= grown(attempts, uniform, pace) <= 300
    assert grown(attempts + 1, uniform, pace) >= grown(attempts, uniform, pace)


@given(limits, chances)
def test_without_progress_exactly_the_limit_of_attempts_is_made(limit: int, uniform: float) -> None:
    state: Backoff | None = None
    for attempt in range(1, limit + 1):
        state = after_failure(state, Failure("Any", ""), limit=limit, pace=Pace(), uniform=uniform)
        assert (state.attempts, state.final) == (attempt, attempt == limit)
    assert state is not None
    assert 720 <= state.delay <= 1080


@given(st.floats(0, 1e9), st.booleans(), chances)
def test_retry_after_is_never_undercut_nor_endless(after: float, permanent: bool, uniform: float) -> None:
    failure = Failure("Throttled", "", permanent, after)
    delay = after_failure(None, failure, limit=8, pace=Pace(), uniform=uniform).delay
    assert min(after, LONGEST_RETRY_AFTER) <= delay <= LONGEST_RETRY_AFTER


def test_gained_bytes_start_the_count_anew() -> None:
    late = Backoff(7, False, "Stalled", "", 0)
    state = after_failure(late, Failure("Stalled", "", gained=True), limit=8, pace=Pace(), uniform=0.5)
    assert (state.attempts, state.final) == (1, False)


@pytest.mark.parametrize("permanent", [True, False])
def test_what_failed_everywhere_at_once_is_not_tried_everywhere_at_once(permanent: bool) -> None:
    """Else each quarter of an hour a whole cluster would ask the registry in one second."""
    nodes = 1000
    late = Backoff(7, False, "NotFound", "", 0)
    failure = Failure("NotFound", "", permanent)
    tries = [
        after_failure(late, failure, limit=8, pace=Pace(slow=900), uniform=node / nodes).delay
        for node in range(nodes)
    ]
    assert (min(tries), max(tries)) == pytest.approx((720, 1080), abs=1)
    for minute in range(720, 1080, 60):
        assert sum(minute <= delay < minute + 60 for delay in tries) <= nodes / 5


def test_each_node_takes_a_chance_of_its_own_for_what_it_tries_slowly() -> None:
    class Chances(StillClock):
        chances = iter((0.0, 0.5, 0.75))

        def uniform(self) -> float:
            return next(self.chances)

    accounts = Accounts(Chances(), Delays(retry_slow=900))
    dues = []
    for _ in range(3):
        view = ImageView(image("a"))
        accounts.failed(view, view.desired, Failure("NotFound", "", permanent=True), 0)
        dues.append(view.due - StillClock().now())
    assert dues == pytest.approx([720, 900, 990])
