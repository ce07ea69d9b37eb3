"""A store that breaks its promises: bits flip on the way, listings lie, puts are cut and acknowledged.

No run may end in anything but success or one of our errors, and nothing wrong is ever delivered.
What a listing hides may be stored again; what a put lost is named by the next check.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest
from day import STEPS, Found, assert_no_plaintext, enter, expected, mornings
from test_day import Injection, trace

from rooms import committed, read
from strongroom.errors import StrongroomError
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.storage.faulty import LISTS, Fault, FaultyStorage, Plan, applies
from strongroom.storage.memory import MemoryStorage

LIES = [Fault.FLIP, Fault.SHORT, *sorted(LISTS, key=lambda fault: fault.name)]
# `init` finds out what the store can do: there a lie is the answer to its question.
TOLD = [step for step in STEPS if step != "init"]


def injections(step: str, faults: list[Fault]) -> Iterator[Injection]:
    for at, operation in enumerate(trace(step), 1):
        for fault in faults:
            if applies(fault, operation.verb):
                yield Injection(step, at, fault, lasting=False)


def lie(one: Injection, place: int) -> MemoryStorage:
    """Run a step over a store that lies once; what is committed afterwards restores."""
    morning = mornings()[one.step]
    storage, claims = morning.storage.fork(), morning.claims.copy()
    faulty = FaultyStorage(storage, Plan(one.fault, one.at, place=place))
    with contextlib.suppress(StrongroomError, Found):  # told, as it should be
        STEPS[one.step](faulty, claims, (one.step, "day"))
    assert faulty.happened
    if one.fault is not Fault.TRUNCATED:
        listed = {snapshot.id for snapshot in committed(enter(storage, "after"))}
        assert set(claims.snapshots) <= listed
    assert_no_plaintext(storage)
    return storage


def assert_restores(storage: MemoryStorage) -> None:
    room = enter(storage, "restore")
    for snapshot in committed(room):
        assert read(room.open_snapshot(snapshot)) == expected(snapshot.labels["held"])
    assert Checker(enter(storage, "check"), progress=Silent()).run(3).findings == []


def cut(one: Injection, place: int) -> None:
    """A put that is acknowledged and cut: the next check names what does not restore, and no more."""
    storage = lie(one, place)
    if one.step.startswith("key"):
        return  # a key object that is cut is named by its own hash; nobody's content hangs on it
    room = enter(storage, "restore")
    lost = []
    for snapshot in committed(room):
        try:
            found = read(room.open_snapshot(snapshot))
        except StrongroomError:
            lost.append(snapshot.id)
        else:
            assert found == expected(snapshot.labels["held"])
    report = Checker(enter(storage, "check"), progress=Silent()).run(3)
    assert report.findings != []
    unlisted = {finding.object.rsplit("-", 1)[-1] for finding in report.findings}
    assert set(lost) <= set(report.damaged_snapshots) <= set(lost) | unlisted


@pytest.mark.parametrize("step", TOLD)
def test_a_sample_of_lies(step: str) -> None:
    every = list(injections(step, LIES))
    for one in random.Random(step).sample(every, min(len(every), 25)):
        assert_restores(lie(one, one.at * 977))


@pytest.mark.parametrize("step", TOLD)
def test_a_sample_of_cut_puts(step: str) -> None:
    every = list(injections(step, [Fault.TRUNCATED]))
    for one in random.Random(step).sample(every, min(len(every), 5)):
        cut(one, one.at * 131)


@pytest.mark.sweep
@pytest.mark.parametrize("step", TOLD)
def test_every_lie(step: str, record_property: Callable[[str, object], None]) -> None:
    count = 0
    for one in injections(step, LIES):
        for place in (0, 1013):
            count += 1
            assert_restores(lie(one, place))
    for one in injections(step, [Fault.TRUNCATED]):
        for place in (0, 333):
            count += 1
            cut(one, place)
    record_property("faults", (f"lies in the step {step}", count))
