"""The commit protocol, model-checked on the real write path; and the checker is checked.

Sampled here; every order with two preemptions, deaths at every step and many random orders are
behind the `sweep` marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from interleaving import Choose, Fate, Stage, Turn, at_random, explore, following
from protocol import Broken, World, make_repeatable

from strongroom.errors import StrongroomError
from strongroom.repository import mending
from strongroom.repository.catalogue import Catalogue, Refs, Snapshot
from strongroom.repository.fates import Fate as Decided
from strongroom.repository.fates import Fates
from strongroom.repository.index import Index
from strongroom.repository.pruning import Pruner
from strongroom.repository.session import WriteSession
from strongroom.storage.base import Buffer
from strongroom.storage.memory import MemoryStorage


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    make_repeatable(monkeypatch)


class Worlds:
    """Runs worlds that share what was found whole; counts them."""

    def __init__(self, **how: object) -> None:
        self._how, self._seen = how, set[int]()
        self.runs = 0

    def __call__(self, choose: Choose) -> Stage:
        self.runs += 1
        return World(seen=self._seen, **self._how).run(choose)  # type: ignore[arg-type]

    @property
    def ends(self) -> int:
        return len(self._seen)


def test_every_order_with_one_preemption() -> None:
    worlds = Worlds()
    for _ in explore(worlds, preemptions=1):
        continue
    assert worlds.runs > 250
    assert worlds.ends > 40


def test_a_run_is_repeated_exactly() -> None:
    """Same turns, same trace, same bytes (I10)."""
    choose = [at_random(7, switching=0.5, dying=0.02, deaths=2) for _ in range(2)]
    first, second = (Worlds()(one) for one in choose)
    assert first.trace == second.trace
    assert first.storage.objects == second.storage.objects


@pytest.mark.parametrize(
    "seed",
    [*range(0, 60, 10), *(pytest.param(n, marks=pytest.mark.sweep) for n in range(60, 120, 10))],
)
def test_random_orders_with_deaths(seed: int) -> None:
    worlds = Worlds()
    for number in range(seed, seed + 10):
        worlds(at_random(number, switching=0.4, dying=0.02, deaths=3))


def test_a_polite_prune_leaves_those_who_run_alone() -> None:
    worlds = Worlds(polite=True)
    for seed in range(30):
        worlds(at_random(seed, switching=0.4, dying=0.02, deaths=3))


def test_who_revives_a_backup_has_all_of_it_or_comes_too_late() -> None:
    worlds = Worlds(bodies=("revive", "prune", "one"))
    for _ in explore(worlds, preemptions=1):
        continue
    for seed in range(40):
        worlds(at_random(seed, switching=0.4, dying=0.02, deaths=3))


@pytest.mark.parametrize("alive", [False, True])
def test_who_is_told_that_a_backup_stays_keeps_it(alive: bool) -> None:
    """Expire, hold, undelete and prune at once; every order of them is behind `sweep`."""
    worlds = Worlds(bodies=("hold", "expire", "prune", "revive"), alive=alive)
    for _ in explore(worlds, preemptions=1):
        if worlds.runs >= 80:
            break
    for seed in range(20):
        worlds(at_random(seed, switching=0.4, dying=0.02, deaths=3))
    assert worlds.ends > 2


def test_two_prunes_and_two_writers_with_a_death_at_every_step() -> None:
    """The first prune dies at each of its operations, one writer half-way, and all come again."""
    worlds = Worlds(bodies=("prune", "one", "prune", "two"))
    steps = sum(turn.actor == 0 for turn in worlds(following([])).turns)
    for step, fate in itertools.product(range(steps), (Fate.DIE_BEFORE, Fate.DIE_AFTER)):
        worlds(following([Turn(1)] * (step % 9) + [Turn(0)] * step + [Turn(0, fate)]))
    assert worlds.runs == 1 + 2 * steps > 15


def test_a_spoiled_index_is_mended_beside_writers_and_a_pruner() -> None:
    worlds = Worlds(spoil=True)
    for _ in explore(worlds, preemptions=1):
        if worlds.runs >= 150:
            break
    for seed in range(60):
        worlds(at_random(seed, switching=0.4, dying=0.02, deaths=3))
    assert worlds.ends > 40


def test_mending_that_makes_void_what_is_not_told_again_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mending, "_tell", lambda *what, **how: 0)
    monkeypatch.setattr(Catalogue, "committed_refs", lambda self, group: iter(()))
    with pytest.raises(Broken):
        Worlds(spoil=True)(following([]))


@pytest.mark.parametrize("actor", [0, 2])
def test_one_dies_at_every_step_and_is_started_again(actor: int) -> None:
    """Alone with the others behind it: crashes of a writer and of the pruner, at each operation."""
    worlds = Worlds(bodies=("one", "prune", "two") if actor == 0 else ("prune", "one", "two"))
    steps = sum(turn.actor == 0 for turn in worlds(following([])).turns)
    for step, fate in itertools.product(range(steps), (Fate.DIE_BEFORE, Fate.DIE_AFTER)):
        worlds(following([Turn(0)] * step + [Turn(0, fate)]))
    assert worlds.runs == 1 + 2 * steps > 15


Mutate = Callable[[pytest.MonkeyPatch], None]

# -- does the checker notice? ------------------------------------------------------------------


def without_w5(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriteSession, "_look_again", lambda self: None)


def without_w2(patch: pytest.MonkeyPatch) -> None:
    """Condemned packs are dedup targets like any other."""
    read = Catalogue.read_index

    def read_all(
        self: Catalogue, group: str, *, condemned: frozenset[bytes]
    ) -> tuple[Index, dict[str, StrongroomError]]:
        del condemned
        return read(self, group, condemned=frozenset())

    patch.setattr(Catalogue, "read_index", read_all)


def look_before_announcing(patch: pytest.MonkeyPatch) -> None:
    """w5 before w4."""
    put, look = Catalogue.put_refs, WriteSession._look_again
    pending: dict[int, tuple[Refs, str]] = {}

    def put_later(self: Catalogue, refs: Refs, source: str) -> None:
        pending[id(self)] = refs, source

    def look_and_put(self: WriteSession) -> None:
        look(self)
        put(self._catalogue, *pending.pop(id(self._catalogue)))

    patch.setattr(Catalogue, "put_refs", put_later)
    patch.setattr(WriteSession, "_look_again", look_and_put)


def announce_after_commit(patch: pytest.MonkeyPatch) -> None:
    """w4 after w6."""
    put_refs, put_snapshot = Catalogue.put_refs, Catalogue.put_snapshot
    pending: dict[int, tuple[Refs, str]] = {}

    def put_later(self: Catalogue, refs: Refs, source: str) -> None:
        pending[id(self)] = refs, source

    def put_both(self: Catalogue, snapshot: Snapshot) -> None:
        put_snapshot(self, snapshot)
        put_refs(self, *pending.pop(id(self)))

    patch.setattr(Catalogue, "put_refs", put_later)
    patch.setattr(Catalogue, "put_snapshot", put_both)


def commit_over_a_tombstone(patch: pytest.MonkeyPatch) -> None:
    """w6 without put-if-absent."""
    put = MemoryStorage.put

    def overwrite(self: MemoryStorage, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        put(self, name, data, if_absent=if_absent and not name.startswith("snapshots/"))

    patch.setattr(MemoryStorage, "put", overwrite)


def index_after_announcing(patch: pytest.MonkeyPatch) -> None:
    """w3's index after w6: a snapshot that nobody finds the frames of."""
    put, commit = WriteSession._put_index, Catalogue.put_snapshot
    pending: dict[int, WriteSession] = {}

    def put_later(self: WriteSession) -> None:
        pending[id(self._catalogue)] = self

    def commit_and_put(self: Catalogue, snapshot: Snapshot) -> None:
        commit(self, snapshot)
        put(pending.pop(id(self)))

    patch.setattr(WriteSession, "_put_index", put_later)
    patch.setattr(Catalogue, "put_snapshot", commit_and_put)


def only_once(name: str) -> Mutate:
    """What a pruner reads by `name` is read at p1 and believed at p2."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        read: Callable[[Pruner], object] = getattr(Pruner, name)
        kept: dict[int, tuple[Pruner, object]] = {}

        def once(self: Pruner) -> object:
            if id(self) not in kept:
                kept[id(self)] = self, read(self)
            return kept[id(self)][1]

        patch.setattr(Pruner, name, once)

    return mutate


def without_tombstones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Catalogue, "put_tombstone", lambda self, name: None)


def without_moving(patch: pytest.MonkeyPatch) -> None:
    """p3 is left out, and with it the look whether anything is missing."""
    patch.setattr(Pruner, "_rewrite", lambda self, *what: None)
    patch.setattr(Pruner, "_assert_safe", lambda self, *what: None)


def sweep_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """p0 takes what was expired without the decision that makes it too late to revive it."""
    decide = Fates.decide

    def skip(self: Fates, fate: Decided, act: str, **how: object) -> Decided:
        return fate if act == "sweep" else decide(self, fate, act, **how)  # type: ignore[arg-type]

    patch.setattr(Fates, "decide", skip)


def decide_over_others(patch: pytest.MonkeyPatch) -> None:
    """A decision that overwrites the one that somebody else made meanwhile."""
    put = MemoryStorage.put

    def overwrite(self: MemoryStorage, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        put(self, name, data, if_absent=if_absent and not name.startswith("fates/"))

    patch.setattr(MemoryStorage, "put", overwrite)


@pytest.mark.parametrize("mutate", [sweep_without_a_mark, decide_over_others])
def test_decisions_without_their_order_are_caught(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutate
) -> None:
    mutate(monkeypatch)
    with pytest.raises(Broken):
        for alive in (True, False):
            for _ in orders(Worlds(bodies=("hold", "expire", "prune", "revive"), alive=alive)):
                continue


MUTANTS: dict[str, Mutate] = {
    "without w5": without_w5,
    "dedup against condemned packs": without_w2,
    "look before announcing": look_before_announcing,
    "announce after commit": announce_after_commit,
    "commit over a tombstone": commit_over_a_tombstone,
    "index after commit": index_after_announcing,
    "p2 does not read refs again": only_once("_every_refs"),
    "p2 resolves refs by an old index": only_once("_read_index"),
    "orphans are dropped without a tombstone": without_tombstones,
    "nothing is moved": without_moving,
}


def orders(worlds: Callable[[Choose], Stage]) -> Iterator[Stage]:
    """What a mutant is tried with: few preemptions first, then deaths, then at random."""
    yield from explore(worlds, preemptions=1)
    for seed in range(3000):
        yield worlds(at_random(seed, switching=0.3, dying=0.03, deaths=2))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_protocol_with_a_step_left_out_is_caught(
    monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    MUTANTS[mutant](monkeypatch)
    worlds = Worlds()
    with pytest.raises(Broken):
        for _ in orders(worlds):
            continue
    print(f"{mutant}: caught by order {worlds.runs}")


# -- the whole ---------------------------------------------------------------------------------


Record = Callable[[str, object], None]


@pytest.mark.sweep
def test_every_order_with_two_preemptions(record_property: Record) -> None:
    worlds = Worlds()
    for _ in explore(worlds, preemptions=2):
        continue
    record_property("faults", ("orders of three actors, at most two preemptions", worlds.runs))


@pytest.mark.sweep
def test_every_death_of_three(record_property: Record) -> None:
    worlds = Worlds()
    for _ in explore(worlds, preemptions=0, deaths=1):
        continue
    record_property("faults", ("orders of three actors, one of whom dies", worlds.runs))


@pytest.mark.sweep
def test_every_death_with_one_preemption(record_property: Record) -> None:
    worlds = Worlds(bodies=("one", "prune"))
    for _ in explore(worlds, preemptions=1, deaths=1):
        continue
    record_property("faults", ("orders of two actors, one death, one preemption", worlds.runs))


@pytest.mark.sweep
def test_every_death_of_two_prunes_and_two_writers(record_property: Record) -> None:
    worlds = Worlds(bodies=("one", "prune", "two", "prune"))
    for _ in explore(worlds, preemptions=0, deaths=1):
        continue
    record_property("faults", ("orders of two writers and two prunes, one dies", worlds.runs))


@pytest.mark.sweep
@pytest.mark.parametrize("alive", [False, True])
def test_every_order_of_deciders_with_two_preemptions(alive: bool, record_property: Record) -> None:
    worlds = Worlds(bodies=("hold", "expire", "prune", "revive"), alive=alive)
    for _ in explore(worlds, preemptions=2):
        if worlds.runs >= 6000:
            break
    for seed in range(2000):
        worlds(at_random(seed, switching=0.4, dying=0.03, deaths=3))
    record_property("faults", ("orders of expire, hold, undelete and prune", worlds.runs))


@pytest.mark.sweep
def test_every_order_with_one_preemption_over_a_spoiled_index(record_property: Record) -> None:
    worlds = Worlds(spoil=True)
    for _ in explore(worlds, preemptions=1):
        continue
    for seed in range(2000):
        worlds(at_random(seed, switching=0.35, dying=0.02, deaths=3))
    record_property("faults", ("orders of three actors over a damaged index", worlds.runs))


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(4))
def test_many_random_orders(part: int, record_property: Record) -> None:
    worlds = Worlds(bodies=("one", "prune", "two", "prune"))
    for seed in range(part * 2000, part * 2000 + 2000):
        worlds(at_random(seed, switching=0.35, dying=0.02, deaths=4))
    record_property("faults", ("random orders of four actors with deaths", worlds.runs))
