"""Every storage operation of the day fails in every way: once, from then on, or for good.

    crashes   before, after and in the middle of the operation (torn)
    errors    EIO, ENOSPC, timeout, 503, 403, reset after the effect; once, and from then on

After each: what was claimed is there and restores (I1), what failed did not end green (I2), no
plaintext rests anywhere (I4), the same command again succeeds, resumes, and stores no chunk
twice (I6). A sample runs always; `make faults` runs all and prints how many there were.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from day import (
    STEPS,
    WRITER_SECRET,
    Found,
    assert_nothing_new,
    assert_sound,
    mornings,
    opens,
    resume,
)

from strongroom.errors import StrongroomError
from strongroom.storage.faulty import (
    CRASHES,
    ERRORS,
    Crash,
    Fault,
    FaultyStorage,
    Operation,
    Plan,
    applies,
)

KINDS = [
    *((fault, False) for fault in sorted(CRASHES - {Fault.TORN_VISIBLE}, key=lambda f: f.name)),
    *(
        (fault, lasting)
        for fault in sorted(ERRORS, key=lambda f: f.name)
        for lasting in (False, True)
    ),
]


@dataclass(frozen=True)
class Injection:
    """One fault: step, operation in it from 1, what, and whether from then on."""

    step: str
    at: int
    fault: Fault
    lasting: bool

    def __str__(self) -> str:
        return f"{self.step}, operation {self.at}: {self.fault.name}{' for good' * self.lasting}"


def trace(step: str) -> list[Operation]:
    """The operations of a step without a fault."""
    faulty = FaultyStorage(mornings()[step].storage.fork())
    STEPS[step](faulty, mornings()[step].claims.copy(), (step, "day"))
    return faulty.trace


def injections(step: str) -> Iterator[Injection]:
    for at, operation in enumerate(trace(step), 1):
        for fault, lasting in KINDS:
            if applies(fault, operation.verb):
                yield Injection(step, at, fault, lasting)


def inject(one: Injection) -> None:
    """Run one step with one fault, then live on."""
    morning = mornings()[one.step]
    storage, claims = morning.storage.fork(), morning.claims.copy()
    faulty = FaultyStorage(storage, Plan(one.fault, one.at, one.lasting, place=one.at * 37))
    green = True
    try:
        STEPS[one.step](faulty, claims, (one.step, "day"))
    except Crash:
        green = False
        assert one.fault in CRASHES
    except StrongroomError as fault:
        green = False
        assert one.fault in ERRORS
        assert fault.what and fault.means and fault.do
    except Found:
        green = False
        assert one.fault in ERRORS
        assert one.step == "check"
    assert faulty.happened
    if "strongroom.json" in storage.objects:
        assert_sound(storage, claims)
    if not green:
        resume(one.step, storage, claims)
        assert_sound(storage, claims)
    assert_done(one.step, storage)
    assert_nothing_new(storage, claims)


def assert_done(step: str, storage: object) -> None:
    if step == "key add":
        assert opens(storage, WRITER_SECRET)  # type: ignore[arg-type]
    if step == "key remove":
        assert not opens(storage, WRITER_SECRET)  # type: ignore[arg-type]


def test_the_day_without_a_fault() -> None:
    night = mornings()["night"]
    assert len(night.claims.snapshots) == 6
    assert_sound(night.storage, night.claims)
    assert_nothing_new(night.storage.fork(), night.claims)
    assert sum(len(trace(step)) for step in STEPS) > 200


def sample(step: str, each: int) -> list[Injection]:
    """So many faults for each verb on each folder: a step has many operations of few sorts."""
    operations, sorts = trace(step), defaultdict(list)
    for one in injections(step):
        operation = operations[one.at - 1]
        sorts[operation.verb, operation.name.split("/")[0]].append(one)
    drawn = random.Random(step)
    return [one for sort in sorts.values() for one in drawn.sample(sort, min(each, len(sort)))]


@pytest.mark.parametrize("step", STEPS)
def test_a_sample_of_faults(step: str) -> None:
    for one in sample(step, 2):
        try:
            inject(one)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            raise AssertionError(str(one)) from failure


@pytest.mark.sweep
@pytest.mark.parametrize("step", STEPS)
def test_every_fault(step: str, record_property: Callable[[str, object], None]) -> None:
    count, failures = 0, []
    for one in injections(step):
        count += 1
        try:
            inject(one)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            failures.append(f"{one}: {type(failure).__name__}: {failure}"[:400])
    record_property("faults", (f"in the step {step}", count))
    assert not failures, "\n".join(failures)
