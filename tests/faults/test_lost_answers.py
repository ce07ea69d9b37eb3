"""The store carried it out and the answer was lost: what was done is not reported as failed.

Above all `init`: the recovery kit is shown once, when the repository is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from day import CODE, SECRET, STEPS, WRITER_SECRET, Claims, enter, holder, mornings, opens
from test_day import trace

from rooms import found, seams
from strongroom.errors import Refused, StorageUnreachable, StrongroomError
from strongroom.keys.base import KeyHolder
from strongroom.keys.recovery_code import RecoveryCodeHolder, parse_recovery_code
from strongroom.operations.initialise import Initialised, initialise
from strongroom.operations.opening import open_repository
from strongroom.storage.base import Buffer
from strongroom.storage.faulty import Fault, FaultyStorage, Plan
from strongroom.storage.memory import MemoryStorage


def recovery() -> KeyHolder:
    return RecoveryCodeHolder(parse_recovery_code(CODE))


def init(storage: FaultyStorage | MemoryStorage) -> Initialised:
    return initialise(
        storage, holders={"owner": holder()}, recovery=(recovery(), CODE), seams=seams("init")
    )


def writes(step: str, *prefixes: str) -> list[int]:
    """Numbers of the puts and deletes of a step below some prefixes."""
    found = [
        at
        for at, one in enumerate(trace(step), 1)
        if one.verb in ("put", "delete") and one.name.startswith(prefixes)
    ]
    assert found != []
    return found


def test_init_shows_the_kit_whichever_answer_is_lost() -> None:
    plain = FaultyStorage(MemoryStorage())
    init(plain)
    mine = [
        at
        for at, one in enumerate(plain.trace, 1)
        if one.verb == "put" and one.name.startswith(("keys/", "strongroom.json"))
    ]
    assert len(mine) == 3
    for at in mine:
        storage = MemoryStorage()
        faulty = FaultyStorage(storage, Plan(Fault.RESET_AFTER, at))
        made = init(faulty)
        assert faulty.happened
        assert CODE in made.kit
        room = open_repository(storage, [recovery()], seams=seams("kit"))
        assert room.identity == made.identity
        assert opens(storage, SECRET)


def test_init_without_an_answer_to_the_last_question_says_how_to_get_a_kit() -> None:
    plain = FaultyStorage(MemoryStorage())
    init(plain)
    (at,) = [n for n, one in enumerate(plain.trace, 1) if one.name == "strongroom.json"]
    storage = MemoryStorage()
    with pytest.raises(StorageUnreachable) as told:
        init(FaultyStorage(storage, Plan(Fault.RESET_AFTER, at, lasting=True)))
    assert "Nobody knows" in told.value.means
    assert "--new-recovery-code" in told.value.do
    assert opens(storage, SECRET)


def test_init_whose_put_had_no_effect_fails_and_succeeds_when_run_again() -> None:
    plain = FaultyStorage(MemoryStorage())
    init(plain)
    (at,) = [n for n, one in enumerate(plain.trace, 1) if one.name == "strongroom.json"]
    storage = MemoryStorage()
    with pytest.raises(StorageUnreachable) as told:
        init(FaultyStorage(storage, Plan(Fault.TIMEOUT, at)))
    assert "Nobody knows" not in told.value.means
    assert "strongroom.json" not in storage.objects
    init(storage)
    assert opens(storage, SECRET)


class Overtaking(MemoryStorage):
    """Somebody else's identity is put in the moment before ours, whose answer is lost."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        if name != "strongroom.json":
            super().put(name, data, if_absent=if_absent)
            return
        found(_Plain(self))
        raise StorageUnreachable("connection reset by peer")


class _Plain(MemoryStorage):
    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__()
        self.objects = inner.objects


def test_an_identity_that_is_another_s_is_not_taken_for_ours() -> None:
    with pytest.raises(Refused) as told:
        init(Overtaking())
    assert "There is a repository" in told.value.what


class Keeping(MemoryStorage):
    """Nothing can be deleted once the identity is there."""

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        if names and "strongroom.json" in self.objects:
            raise StorageUnreachable("connection reset by peer")
        super().delete(names)


def test_what_a_dead_init_left_costs_no_kit() -> None:
    storage = Keeping({"keys/1/" + "0" * 32 + ".json": b"left behind"})
    made = init(storage)
    assert CODE in made.kit
    assert list(made.left) == ["keys/1/" + "0" * 32 + ".json"]
    assert opens(storage, SECRET)


DONE: dict[str, Callable[[MemoryStorage], bool]] = {
    "key add": lambda storage: opens(storage, WRITER_SECRET),
    "key remove": lambda storage: not opens(storage, WRITER_SECRET),
}


@pytest.mark.parametrize("step", DONE)
def test_a_key_is_added_and_removed_though_the_answer_is_lost(step: str) -> None:
    for at in writes(step, "keys/"):
        storage = mornings()[step].storage.fork()
        faulty = FaultyStorage(storage, Plan(Fault.RESET_AFTER, at))
        STEPS[step](faulty, Claims(), (step, "day"))
        assert faulty.happened
        assert DONE[step](storage)
        enter(storage, "after")


@pytest.mark.parametrize("step", DONE)
@pytest.mark.parametrize("fault", [Fault.TIMEOUT, Fault.DENIED, Fault.RESET_AFTER])
def test_a_key_command_that_failed_or_may_have_says_so(step: str, fault: Fault) -> None:
    for at in writes(step, "keys/"):
        for lasting in (False, True):
            if fault is Fault.RESET_AFTER and (not lasting or step == "key remove"):
                continue  # looked for, and found done
            storage = mornings()[step].storage.fork()
            with pytest.raises(StrongroomError) as told:
                STEPS[step](FaultyStorage(storage, Plan(fault, at, lasting)), Claims(), "x")
            assert ("Nobody knows" in told.value.means) == lasting
            assert DONE[step](storage) == (fault is Fault.RESET_AFTER)
