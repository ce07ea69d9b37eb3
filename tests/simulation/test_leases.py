"""Two schedulers over one repository, one storage operation at a time, in every order.

Each host judges with the real rules, takes with the real leases, and "runs" the job: two storage
operations of its own with a sign of life between. Asked of the world at every moment: nobody else
runs it, unless the one who did was without a sign for longer than the limit by the store's clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from interleaving import Body, Choose, ScheduledStorage, Stage, at_random, explore

from rooms import drawn, writer_keys
from strongroom.errors import Busy, Refused
from strongroom.operations.scheduling import _held, run_job
from strongroom.repository.catalogue import Catalogue
from strongroom.repository.leases import KEPT, Leases, old_leases
from strongroom.repository.seams import Seams
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Job, Verdict, decide
from strongroom.storage.memory import MemoryStorage

JOB = Job("backup.db", (("backup", "db"),), Cron.parse("0 2 * * *"), UTC)
DUE = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
LIMIT = timedelta(minutes=20)
MINUTE = timedelta(minutes=1)


class Broken(AssertionError):
    """A job ran twice, or not at all."""


@dataclass
class World:
    """One run. `nap`: how long passes, by the store's clock, at each operation of the host "time".

    `ahead`: by how much each host's own clock is ahead.
    """

    hosts: int = 2
    nap: timedelta = timedelta(0)
    naps: int = 0
    ahead: tuple[timedelta, ...] = (timedelta(0), timedelta(0), timedelta(0))
    now: datetime = DUE + MINUTE
    storage: MemoryStorage = field(init=False)
    running: dict[int, int] = field(default_factory=dict)  # the number of each host that runs it
    runs: list[int] = field(default_factory=list)  # numbers, as they began
    done: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(now=lambda: self.now.timestamp())  # noqa: PLW0108 -- it moves

    def run(self, choose: Choose) -> Stage:
        bodies: list[Body] = [self._host(number) for number in range(self.hosts)]
        if self.naps:
            bodies.append(self._time)
        stage = Stage(self.storage, bodies)
        stage.run(choose)
        self.finish()
        return stage

    def finish(self) -> None:
        """When all is quiet, a host that comes much later does what is left, and then nothing."""
        for _ in range(4):
            self.now += 2 * LIMIT
            self.act(99, self.storage)
        if not any(re.fullmatch("work/.*/2", name) for name in self.storage.objects):
            raise Broken("nobody ran it")
        before = len(self.runs)
        self.now += 2 * LIMIT
        self.act(99, self.storage)
        if len(self.runs) != before:
            raise Broken("it was run again")

    def signed(self, number: int) -> float:
        """The store's time of the last sign of life of a number."""
        signs = re.compile(rf"leases/.*/{number:06d}(\.\d+)?")
        times = [e.modified or 0.0 for e in self.storage.list("leases/") if signs.fullmatch(e.name)]
        return max(times)

    def leases(self, storage: ScheduledStorage | MemoryStorage, host: int) -> Leases:
        ahead = self.ahead[host] if host < len(self.ahead) else timedelta(0)
        seams = Seams(now=lambda: self.now + ahead, steady=lambda: 0.0, random=drawn(host))
        keys = writer_keys(f"host-{host}")
        catalogue = Catalogue(storage, keys, random=drawn(("catalogue", host, self.now)))
        return Leases(catalogue, seams, host=f"host-{host}", limit=LIMIT)

    def verdict(self, leases: Leases, host: int) -> Verdict:
        ahead = self.ahead[host] if host < len(self.ahead) else timedelta(0)
        return decide(
            JOB,
            now=self.now + ahead,
            began=DUE - timedelta(hours=1),
            runs=(),
            held=[_held(one) for one in leases.of(JOB.name)],
        )

    def act(self, host: int, storage: ScheduledStorage | MemoryStorage) -> None:
        leases = self.leases(storage, host)
        verdict = self.verdict(leases, host)
        if not verdict.runs:
            return
        try:
            lease = leases.take(JOB.name, verdict.due, verdict.number)
        except (Busy, Refused):
            return
        if verdict.due > self.now + MINUTE:
            raise Broken("it ran before its time")
        for other, number in self.running.items():
            if self.signed(number) >= self.now.timestamp() - LIMIT.total_seconds():
                raise Broken(f"{host} runs it as {lease.number} while {other} does as {number}")
        if lease.number in self.runs:
            raise Broken("two hosts have one number")
        self.runs.append(lease.number)
        self.running[host] = lease.number
        try:
            storage.put(f"work/{host}/{lease.number}/1", b"")
            mine = leases.sign(lease, 1)
            if not mine:
                return  # somebody took over: stop, and say nothing
            storage.put(f"work/{host}/{lease.number}/2", b"")
            leases.end(lease, outcome="done", exit=0)
            self.done.append(lease.number)
        finally:
            del self.running[host]

    def _host(self, number: int) -> Body:
        return lambda storage: self.act(number, storage)

    def _time(self, storage: ScheduledStorage) -> None:
        for _ in range(self.naps):
            list(storage.list("tick/"))
            self.now += self.nap


def test_of_two_hosts_one_runs_it_in_every_order() -> None:
    def run(choose: Choose) -> Stage:
        world = World()
        stage = world.run(choose)
        assert world.runs == world.done == [1]
        return stage

    assert sum(1 for _ in explore(run, preemptions=3)) > 50


def test_with_a_death_anywhere_it_is_run_in_the_end() -> None:
    runs = 0
    for _ in explore(lambda choose: World().run(choose), preemptions=1, deaths=1):
        runs += 1
    assert runs > 100


@pytest.mark.parametrize("nap", [timedelta(minutes=15), timedelta(minutes=25)])
def test_hosts_that_sleep_between_two_operations(nap: timedelta) -> None:
    """Time passes anywhere: nobody takes over from who gave a sign lately."""
    for _ in explore(lambda choose: World(nap=nap, naps=2).run(choose), preemptions=2):
        continue


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_three_hosts_in_random_orders_with_deaths_and_sleep(start: int) -> None:
    for seed in range(start, start + 50):
        world = World(hosts=3, nap=timedelta(minutes=11), naps=4)
        world.run(at_random(seed, switching=0.5, dying=0.05, deaths=2))


def test_clocks_that_are_wrong_change_nothing() -> None:
    day = timedelta(days=1)
    for ahead in ((day, timedelta(0), timedelta(0)), (-3 * day, 3 * day, timedelta(0))):
        for seed in range(40):
            world = World(hosts=3, ahead=ahead)
            world.run(at_random(seed, switching=0.5, dying=0.0, deaths=0))
            assert world.done.count(1) == 1


# -- the checker is checked --------------------------------------------------------------------


def test_a_lease_that_overwrites_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    put = MemoryStorage.put

    def careless(self: MemoryStorage, name: str, data: bytes, *, if_absent: bool = False) -> None:
        put(self, name, data, if_absent=if_absent and not name.startswith("leases/"))

    monkeypatch.setattr(MemoryStorage, "put", careless)
    with pytest.raises(Broken):
        for _ in explore(lambda choose: World().run(choose), preemptions=2):
            continue


def test_who_believes_every_host_dead_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_is_alive", lambda self, last: False)
    monkeypatch.setattr(Leases, "_look_again", lambda self, lease: None)
    with pytest.raises(Broken):
        for _ in explore(lambda choose: World().run(choose), preemptions=2):
            continue


def test_who_does_not_look_again_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_look_again", lambda self, lease: None)
    with pytest.raises(Broken):
        for _ in explore(
            lambda choose: World(nap=timedelta(minutes=25), naps=2).run(choose), preemptions=3
        ):
            continue


# -- what is stored ----------------------------------------------------------------------------


def test_a_lease_of_a_time_to_come_is_given_back() -> None:
    world = World(hosts=1, ahead=(timedelta(days=1),))
    leases = world.leases(world.storage, 0)
    with pytest.raises(Refused, match="ahead of the store"):
        leases.take(JOB.name, DUE + timedelta(days=1), 1)
    (told,) = leases.of(JOB.name)
    assert (told.outcome, told.idle, told.alive) == ("early", 1, False)


def test_what_does_not_open_counts_by_its_name() -> None:
    world = World(hosts=1)
    leases = world.leases(world.storage, 0)
    lease = leases.take(JOB.name, DUE, 1)
    world.storage.objects[lease.name] = b"bad"
    world.storage.objects[f"{lease.name}.end"] = b"bad"
    (told,) = leases.of(JOB.name)
    assert (told.number, told.host, told.outcome, told.alive) == (1, "", "", True)
    with pytest.raises(Busy):
        leases.take(JOB.name, DUE, 1)
    world.now += 2 * LIMIT
    (told,) = leases.of(JOB.name)
    assert told.alive is False


def test_where_the_store_tells_no_time_nobody_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(hosts=1)
    leases = world.leases(world.storage, 0)
    leases.take(JOB.name, DUE, 1)
    world.storage._modified.clear()
    world.now += 9 * LIMIT
    (told,) = leases.of(JOB.name)
    assert told.alive is True
    assert old_leases(world.storage) == []


def test_a_prune_takes_what_is_old_but_the_last_time_of_a_job() -> None:
    world = World(hosts=1)
    leases = world.leases(world.storage, 0)
    for day in range(12):
        world.now = DUE + timedelta(days=day, minutes=1)
        for job in ("backup.db", "check") if day == 0 else ("backup.db",):
            lease = leases.take(job, DUE + timedelta(days=day), 1)
            leases.end(lease, outcome="done", exit=0)
    gone = old_leases(world.storage)
    days = [name.split("/")[2] for name in gone]
    assert days == [f"202603{day}T020000Z" for day in range(10, 14) for _ in range(2)]
    assert all(name.startswith("leases/backup.db/") for name in gone)
    assert gone[0].endswith("000001.end") and gone[1].endswith("000001")
    assert timedelta(days=7) == KEPT
    world.storage.delete(gone)
    assert old_leases(world.storage) == []


def test_times_that_a_clock_ahead_has_left_hide_nothing() -> None:
    """A host whose clock was forty days ahead: what was served stays known, and is not run again."""
    world = World(hosts=1, ahead=(timedelta(days=40),))
    there = world.leases(world.storage, 9)
    there.end(there.take(JOB.name, DUE, 1), outcome="done", exit=0)
    ahead = world.leases(world.storage, 0)
    for day in range(38, 42):
        with pytest.raises(Refused):
            ahead.take(JOB.name, DUE + timedelta(days=day), 1)
    for day in (0, 8, 20):
        world.now = DUE + timedelta(days=day, minutes=5)
        world.storage.put(f"leases/check/20260401T000000Z/{day + 1:06}", b"")  # the newest of all
        world.storage.delete(old_leases(world.storage))
        for host in (0, 9):
            (there_still, *early) = world.leases(world.storage, host).of(JOB.name)
            assert (there_still.due, there_still.outcome) == (DUE, "done")
            assert {one.outcome for one in early} == {"early"}


@pytest.mark.parametrize(
    ("statuses", "ran", "status", "outcome"),
    [
        ((0, 0), 2, 0, "done"),
        ((4, 0), 2, 4, "refused"),  # expire refuses one source; prune spares it
        ((4, 9), 2, 9, "failed"),
        ((10, 0), 2, 10, "done"),
        ((7, 0), 1, 7, "failed"),
        ((1, 0), 1, 1, "failed"),
    ],
)
def test_steps_go_on_behind_a_refusal(
    statuses: tuple[int, ...], ran: int, status: int, outcome: str
) -> None:
    world = World(hosts=1)
    leases = world.leases(world.storage, 0)
    job = Job("expire", (("expire",), ("prune",)), JOB.cron, UTC)
    verdict = decide(job, now=world.now, began=DUE - MINUTE, runs=(), held=())
    left = list(statuses)
    assert run_job(leases, verdict, lambda *_: left.pop(0), limit=LIMIT) == status
    assert len(statuses) - len(left) == ran
    (told,) = leases.of("expire")
    assert (told.outcome, told.exit) == (outcome, status)
