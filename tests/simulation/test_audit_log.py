"""Two writers of the audit log, in every order, and dying: each number once, none left out.

Sampled here; more orders are behind the `sweep` marker.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from interleaving import Choose, ScheduledStorage, Stage, at_random, explore, following

from rooms import BIRTH, new_room, open_room, writer_keys
from strongroom.errors import AlreadyExists
from strongroom.format import audit as names
from strongroom.format.run import Run
from strongroom.repository.audit import AuditLog, Head
from strongroom.storage.memory import MemoryStorage


def run(word: str) -> Run:
    return Run("backup", "0" * 16, BIRTH, BIRTH + timedelta(minutes=1), what=word)


class World:
    """Writers that append two runs each to a log that is at a border of a tile, or just before."""

    def __init__(self, *, begun: int = 3, writers: int = 2) -> None:
        self.storage = MemoryStorage()
        log = AuditLog(new_room(self.storage))
        for number in range(begun):
            log.append(run(f"old {number}"))
        self.begun, self.writers = begun, writers
        self.answered: dict[str, int] = {}

    def run(self, choose: Choose) -> Stage:
        bodies = [self._writer(who) for who in range(self.writers)]
        stage = Stage(self.storage, bodies)
        stage.run(choose)
        self._judge()
        return stage

    def _writer(self, who: int):  # type: ignore[no-untyped-def]
        def body(storage: ScheduledStorage) -> None:
            room = open_room(self.storage, who, keyset=writer_keys(f"host-{who}"))
            log = AuditLog(room, storage=storage)
            for word in (f"{who} first", f"{who} second"):
                self.answered[word] = log.append(run(word))

        return body

    def _judge(self) -> None:
        log = AuditLog(open_room(self.storage, "judge"))
        told = {number: each.what for number, each in log.leaves()}
        assert list(told) == list(range(len(told)))
        words = list(told.values())
        assert len(set(words)) == len(words), "a run stands twice"
        assert all(told[number] == word for word, number in self.answered.items())
        assert words[: self.begun] == [f"old {number}" for number in range(self.begun)]
        report = log.verify()
        assert report.whole, report.faults
        assert log.append(run("afterwards")) == len(told)


@pytest.fixture(autouse=True)
def little_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TILE", 4)


def count(preemptions: int, deaths: int, **how: int) -> int:
    return sum(
        1
        for _ in explore(
            lambda choose: World(**how).run(choose), preemptions=preemptions, deaths=deaths
        )
    )


def test_every_order_of_two_writers_with_one_preemption() -> None:
    assert count(1, 0) > 20


def test_dying_at_every_step_beside_another_writer() -> None:
    assert count(0, 1) > 20


@pytest.mark.parametrize("seed", range(0, 100, 20))
def test_random_orders_of_three_writers_with_deaths(seed: int) -> None:
    for number in range(seed, seed + 20):
        choose = at_random(number, switching=0.5, dying=0.03, deaths=2)
        World(begun=number % 5, writers=3).run(choose)


@pytest.mark.sweep
@pytest.mark.parametrize("begun", range(5))
def test_every_order_with_two_preemptions_and_a_death(begun: int) -> None:
    assert count(2, 1, begun=begun) > 500


# -- does the judge notice? --------------------------------------------------------------------


def test_a_writer_that_does_not_look_who_won_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: AuditLog, number: int, document: bytes) -> bytes | None:
        name = names.leaf_name(number)
        try:
            self._storage.put(name, self._seal(b"audl", name, document), if_absent=True)
        except AlreadyExists:
            return None
        return None

    monkeypatch.setattr(AuditLog, "_put_leaf", careless)
    with pytest.raises(AssertionError):
        count(1, 0)


def test_a_writer_that_does_not_take_over_what_was_before_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Head, "grown", lambda self, leaf: Head(self.size + 1, self.frontier))
    with pytest.raises((AssertionError, ValueError)):
        World().run(following([]))
