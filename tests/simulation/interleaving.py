"""Actors over one storage, one operation at a time, in an order that somebody else decides.

Each actor is real code in real threads, over a storage that waits for its turn at every
operation. Between two operations only one actor runs, so that an order of turns is a run that can
be repeated. A turn may kill its actor, before or after the operation has had its effect.

Rule: nothing here knows what the actors do.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from strongroom.storage.base import Buffer, Entry
from strongroom.storage.faulty import Crash
from strongroom.storage.memory import MemoryStorage

PATIENCE = 60.0  # seconds for what takes milliseconds: longer means that an actor hangs

Result = TypeVar("Result")


class Fate(Enum):
    """What a turn does to its actor."""

    GO = "goes on"
    DIE_BEFORE = "dies before the operation"
    DIE_AFTER = "dies after the operation"


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of a run: which actor, and what happens to it."""

    actor: int
    fate: Fate = Fate.GO


Body = Callable[["ScheduledStorage"], None]
Choose = Callable[[Sequence[int], int | None, int], Turn]  # waiting actors, the last one, step


class _Actor:
    def __init__(self, stage: Stage, number: int, body: Body) -> None:
        self.number = number
        self.storage = ScheduledStorage(stage, self)
        self.go = threading.Semaphore(0)
        self.fate = Fate.GO
        self.operation: tuple[str, str] | None = None
        self.dead = self.done = False
        self.failure: BaseException | None = None
        self._stage, self._body = stage, body
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._body(self.storage)
        except BaseException as failure:  # judged by the stage
            self.failure = failure
        finally:
            self.done = True
            self._stage.arrived.release()


class Stage:
    """One run. `after(verb, name)` is called when an operation has had its effect.

    `again` makes the body that takes the place of an actor that died, if any.
    """

    def __init__(
        self,
        storage: MemoryStorage,
        bodies: Sequence[Body],
        *,
        after: Callable[[str, str], None] = lambda verb, name: None,
        again: Callable[[int], Body | None] = lambda actor: None,
    ) -> None:
        self.storage = storage
        self.after = after
        self._again = again
        self.arrived = threading.Semaphore(0)
        self.trace: list[tuple[int, str, str, Fate]] = []
        self.turns: list[Turn] = []
        self.choices: list[list[int]] = []
        self.actors: list[_Actor] = []
        for body in bodies:
            self._enter(body)

    def _enter(self, body: Body) -> None:
        actor = _Actor(self, len(self.actors), body)
        self.actors.append(actor)
        actor.thread.start()
        self._wait()

    def _wait(self) -> None:
        if not self.arrived.acquire(timeout=PATIENCE):
            raise AssertionError("an actor hangs between two operations")

    def run(self, choose: Choose) -> None:
        """Give turns until every actor is done; raise what an actor raised but for crashes."""
        last: int | None = None
        try:
            while waiting := [actor.number for actor in self.actors if not actor.done]:
                turn = choose(waiting, last, len(self.turns))
                self.turns.append(turn)
                self.choices.append(waiting)
                self._step(self.actors[turn.actor], turn.fate)
                last = turn.actor
        finally:
            self._clear()
        for actor in self.actors:
            if actor.failure is not None and not isinstance(actor.failure, Crash):
                raise actor.failure

    def _step(self, actor: _Actor, fate: Fate) -> None:
        assert actor.operation is not None
        self.trace.append((actor.number, *actor.operation, fate))
        actor.fate = fate
        actor.go.release()
        self._wait()
        if fate is not Fate.GO:
            while not actor.done:
                self._wait()
            successor = self._again(actor.number)
            if successor is not None:
                self._enter(successor)

    def _clear(self) -> None:
        """End what is left after a failure, so that no thread stays behind."""
        for actor in self.actors:
            actor.dead = True
            actor.go.release()
            actor.thread.join(PATIENCE)

    def enter_operation(self, actor: _Actor, verb: str, name: str) -> Fate:
        """Wait for the actor's turn; called by its threads."""
        if actor.dead:
            raise Crash(f"{verb} {name}")
        assert actor.operation is None, "two operations of one actor at the same time"
        actor.operation = verb, name
        self.arrived.release()
        actor.go.acquire()
        actor.operation = None
        if actor.dead or actor.fate is Fate.DIE_BEFORE:
            actor.dead = True
            raise Crash(f"{verb} {name}")
        return actor.fate

    def perform(self, actor: _Actor, verb: str, name: str, effect: Callable[[], Result]) -> Result:
        """Carry out one operation when its turn comes, and die where the turn says so."""
        fate = self.enter_operation(actor, verb, name)
        try:
            result = effect()
        finally:
            self.after(verb, name)
            if fate is Fate.DIE_AFTER:
                actor.dead = True
                raise Crash(f"{verb} {name}")
        return result


class ScheduledStorage:
    """One actor's way to the storage; a listing is one operation, a delete one for each name."""

    def __init__(self, stage: Stage, actor: _Actor) -> None:
        self._stage, self._actor = stage, actor

    @property
    def url(self) -> str:
        return "scheduled:"

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        put = self._stage.storage.put
        self._perform("put", name, lambda: put(name, data, if_absent=if_absent))

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        get = self._stage.storage.get
        return self._perform("get", name, lambda: get(name, offset=offset, length=length))

    def list(self, prefix: str) -> Iterator[Entry]:
        yield from self._perform("list", prefix, lambda: [*self._stage.storage.list(prefix)])

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._delete(name)

    def _delete(self, name: str) -> None:
        self._perform("delete", name, lambda: self._stage.storage.delete([name]))

    def _perform(self, verb: str, name: str, effect: Callable[[], Result]) -> Result:
        return self._stage.perform(self._actor, verb, name, effect)

    def free_space(self) -> int | None:
        return None

    def total_space(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing to release."""


# -- orders ------------------------------------------------------------------------------------


def stay(waiting: Sequence[int], last: int | None) -> int:
    """The actor that a run without preemption gives the turn to."""
    return last if last in waiting and last is not None else waiting[0]


def following(prefix: Sequence[Turn]) -> Choose:
    """The turns of `prefix`, then no preemption any more."""

    def choose(waiting: Sequence[int], last: int | None, step: int) -> Turn:
        return prefix[step] if step < len(prefix) else Turn(stay(waiting, last))

    return choose


def at_random(seed: int, *, switching: float, dying: float, deaths: int) -> Choose:
    """Turns drawn from `seed`: probabilities to switch and to die, and how many may die."""
    drawn, left = random.Random(seed), deaths

    def choose(waiting: Sequence[int], last: int | None, step: int) -> Turn:
        nonlocal left
        del step
        actor = drawn.choice(waiting) if drawn.random() < switching else stay(waiting, last)
        if left and drawn.random() < dying:
            left -= 1
            return Turn(actor, drawn.choice((Fate.DIE_BEFORE, Fate.DIE_AFTER)))
        return Turn(actor)

    return choose


def explore(
    run: Callable[[Choose], Stage], *, preemptions: int, deaths: int = 0
) -> Iterator[Stage]:
    """Every order with at most so many preemptions and deaths (Musuvathi and Qadeer, CHESS, 2007).

    A preemption takes the turn from an actor that could go on; changing over when one is done
    is free. Each order is run once.
    """
    pending: list[tuple[list[Turn], int, int]] = [([], preemptions, deaths)]
    while pending:
        prefix, switches, dying = pending.pop()
        stage = run(following(prefix))
        yield stage
        for step in range(len(prefix), len(stage.turns)):
            done, last = stage.turns[:step], stage.turns[step - 1].actor if step else None
            taken, waiting = stage.turns[step].actor, stage.choices[step]
            for other in waiting:
                cost = int(last in waiting and other != last)
                if other != taken and cost <= switches:
                    pending.append(([*done, Turn(other)], switches - cost, dying))
            if dying:
                for fate in (Fate.DIE_BEFORE, Fate.DIE_AFTER):
                    pending.append(([*done, Turn(taken, fate)], switches, dying - 1))
