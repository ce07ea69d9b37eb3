"""What is wrong is told once and its end once, whatever dies, whoever looks, and whatever clocks say.

Time is a number here; repository, log, leases and journal are the real ones over a store in memory.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rooms import BIRTH, QUIET, drawn, found, reader_keys, take
from strongroom.config.building import build
from strongroom.errors import StorageUnreachable
from strongroom.format.run import Run
from strongroom.observe.channels.base import NotTold
from strongroom.observe.telling import Announced
from strongroom.operations.alerting import Carried, carry_out, open_alerts, tell_of_repository
from strongroom.operations.recording import Recorder, Who
from strongroom.operations.watching import look, state_of
from strongroom.repository import identity as identities
from strongroom.repository.audit import AuditLog
from strongroom.repository.keyring import Keyring
from strongroom.repository.leases import Leases
from strongroom.repository.repository import Repository
from strongroom.repository.seams import Seams
from strongroom.rules.anomalies import conditions
from strongroom.rules.messages import Message
from strongroom.rules.times import show_time
from strongroom.storage.memory import MemoryStorage

HOUR, DAY, MINUTE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=1)
TABLE: dict[str, Any] = {
    "source": {
        "db": {
            "type": "files",
            "path": "/db",
            "schedule": "0 2 * * *",
            "promise": {"rpo": "9d", "drill": "62d", "keep": "30d"},
        }
    },
}


@dataclass
class Sink:
    """A channel that takes everything, or nothing."""

    name: str = "mail"
    each: bool = False
    up: bool = True
    taken: list[Message] = field(default_factory=list)
    tries: int = 0
    dies: bool = False

    def send(self, message: Message) -> None:
        self.tries += 1
        if not self.up:
            raise NotTold(f"{self.name}: down.")
        self.taken.append(message)
        if self.dies:
            raise KeyboardInterrupt

    @property
    def subjects(self) -> list[str]:
        return [message.subject.removeprefix("[strongroom] ") for message in self.taken]


@dataclass
class Heart:
    """A dead man's switch that counts."""

    name: str = "deadman"
    beats: int = 0
    deaf: bool = False

    def ping(self) -> None:
        if self.deaf:
            raise NotTold("deadman: the ping was answered with 500.")
        self.beats += 1


class World:
    """A store with a clock of its own, and hosts that look at it."""

    def __init__(self, folder: Path) -> None:
        self.time = BIRTH + DAY  # after the first night
        self.storage = MemoryStorage(now=self.seconds)
        found(self.storage)
        self.folder = folder
        self.sinks = [Sink()]
        self.heart = Heart()
        self.table = TABLE
        self.numbers = itertools.count()
        self.hosts: dict[str, Host] = {}

    def seconds(self) -> float:
        return self.time.timestamp()

    def host(self, name: str = "one") -> Host:
        return self.hosts.setdefault(name, Host(self, name))

    def backup(self, *, what: str = "", size: int = 1000, **how: Any) -> None:
        """A run that took ten minutes and ended now."""
        run = Run(
            "backup",
            f"{next(self.numbers):016x}",
            self.time - 10 * MINUTE,
            self.time,
            "db",
            **{"what": what, "size": size, "snapshot": f"{next(self.numbers):032x}"} | how,
        )
        due = self.time.replace(hour=2, minute=0, second=0)
        cause = {"job": "backup.db", "due": show_time(due)}
        run = replace(run, detail={**run.detail, **cause})
        repository = self.host().open()
        AuditLog(repository).append(run)
        leases = Leases(repository.catalogue, repository.seams, host="one", limit=HOUR)
        number = 1 + sum(one.number for one in leases.of("backup.db") if one.due == due)
        leases.end(leases.take("backup.db", due, number), outcome=run.outcome, exit=0)
        if run.outcome in ("done", "incomplete"):
            self.storage.put(f"snapshots/db/{self.time:%Y%m%dT%H%M%SZ}-{run.snapshot}", b"")


class Host:
    """One machine; its clock may be off by `ahead`."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.ahead = world, name, timedelta()
        self.recorder = Recorder(
            str(world.folder / name),
            Who(name, "root"),
            now=self.now,
            random=drawn((name, next(world.numbers))),
            warn=lambda text: None,
        )

    def now(self) -> datetime:
        return self.world.time + self.ahead

    def open(self) -> Repository:
        return Repository(
            self.world.storage,
            identities.load(self.world.storage),
            Keyring({1: reader_keys()}),
            seams=Seams(
                now=self.now,
                steady=lambda: 0.0,
                random=drawn((self.name, next(self.world.numbers))),
            ),
            settings=QUIET,
        )

    def look(self, sinks: Sequence[Sink] | None = None) -> Carried:
        repository = self.open()
        self.recorder.opened(repository)
        configuration, faults = build(self.world.table)
        assert configuration is not None, faults
        assert self.recorder.journal is not None
        return carry_out(
            repository,
            self.recorder.journal,
            configuration,
            [
                Announced(sink, "warning", sink.name == "boss")
                for sink in (self.world.sinks if sinks is None else sinks)
            ],
            now=self.now(),
            host=self.name,
            recorder=self.recorder,
            pings=[self.world.heart],  # type: ignore[list-item]
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    # Ten good nights; nothing was missed.
    for day in range(1, 11):
        world.time = datetime(2026, 7, 1 + day, 2, 10, tzinfo=UTC)
        world.backup()
    return world


def test_a_failure_is_told_once_and_its_end_once(world: World) -> None:
    host = world.host()
    assert host.look().wrong == () and world.heart.beats == 1
    names = {entry.name for entry in world.storage.list("")}
    assert host.look().well
    assert {entry.name for entry in world.storage.list("")} == names, "looking puts nothing"
    world.time += DAY
    world.backup(outcome="failed", what="the server is away")
    for _ in range(3):
        carried = host.look()
        world.time += 10 * MINUTE
    assert not carried.well and carried.open[0].sent is not None
    world.time += 24 * HOUR
    world.backup()
    host.look(), host.look()
    (sink,) = world.sinks
    assert sink.subjects == [
        "The backup of db failed.",
        "Fixed: The backup of db failed.",
    ]
    assert "the server is away" in sink.taken[0].text
    assert world.heart.beats == 4, "silent while it was wrong"
    assert carried.faults == ()
    leaves = host.recorder.journal.runs(type="alert")  # type: ignore[union-attr]
    assert [run.detail["state"] for run in leaves] == ["open", "over"]
    assert {run.source for run in leaves} == {"db"}


def test_a_dead_mans_switch_that_does_not_hear_is_said(world: World) -> None:
    world.backup()
    world.heart.deaf = True
    carried = world.host().look()
    assert not carried.pinged
    assert carried.faults == ("deadman: the ping was answered with 500.",)
    assert carried.well, "that nobody hears it is nothing wrong with the backups"
    world.heart.deaf = False
    assert world.host().look().pinged


def test_nobody_could_be_told_it_is_tried_again_ever_more_slowly_by_everybody_at_last(
    world: World,
) -> None:
    mail, boss = world.sinks = [Sink(up=False), Sink("boss", up=False)]
    world.time += DAY
    world.backup(outcome="failed")
    host = world.host()
    for _ in range(6 * 60):
        host.look()
        world.time += MINUTE
    # At 0, 1, 3, 7, 15, 31, 63 min, and then every hour.
    assert mail.tries == 12 - 1
    assert boss.tries == mail.tries - 3
    boss.up = True
    world.time += HOUR
    host.look()
    assert boss.subjects == ["The backup of db failed."]
    world.backup()
    world.time += HOUR
    mail.up = True
    host.look()
    assert mail.subjects == ["Fixed: The backup of db failed."]
    assert host.look().well


def test_what_ended_before_anybody_could_be_told_is_not_told(world: World) -> None:
    (mail,) = world.sinks
    mail.up = False
    world.time += DAY
    world.backup(outcome="failed")
    world.host().look()
    world.backup()
    mail.up = True
    world.time += MINUTE
    assert world.host().look().open == ()
    assert mail.taken == [] and mail.tries == 1


def test_of_two_hosts_one_tells_and_the_other_goes_on(world: World) -> None:
    one, two = world.host("one"), world.host("two")
    world.time += DAY
    world.backup(outcome="failed")
    for _ in range(3):
        one.look(), two.look()
        world.time += HOUR
    world.backup()
    two.look(), one.look()
    (mail,) = world.sinks
    assert mail.subjects == ["The backup of db failed.", "Fixed: The backup of db failed."]
    # An incident is followed by who told it first.
    assert {message.host for message in mail.taken} == {"one"}


def test_while_one_tells_another_does_not(world: World) -> None:
    one, two = world.host("one"), world.host("two")
    world.time += DAY
    world.backup(outcome="failed")
    (mail,) = world.sinks
    seen: list[bool] = []

    class Slow(Sink):
        def send(self, message: Message) -> None:
            seen.append(two.look([mail]).elsewhere)
            super().send(message)

    slow = Slow()
    one.look([slow])
    assert seen == [True] and len(slow.taken) == 1 and mail.taken == []


def test_a_host_that_died_while_it_told_leaves_it_to_the_next(world: World) -> None:
    world.time += DAY
    world.backup(outcome="failed")
    (mail,) = world.sinks
    mail.dies = True
    with pytest.raises(KeyboardInterrupt):
        world.host("one").look()
    mail.dies = False
    world.time += HOUR
    world.host("two").look()
    assert mail.subjects == ["The backup of db failed."] * 2, "nothing that was to be told is lost"


def test_a_lost_journal_or_a_leaf_that_cannot_be_put_tells_nothing_twice(world: World) -> None:
    world.time += DAY
    world.backup(outcome="failed")
    host = world.host()
    host.look()
    shutil.rmtree(world.folder / "one")
    world.hosts.clear()
    host = world.host()
    before = host.look()
    assert before.actions == () and len(before.open) == 1
    (world.folder / "one" / "journal.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4000)
    world.hosts.clear()
    host = world.host()
    assert host.look().open == before.open
    # The log takes nothing: what was told is kept on this machine until it does.
    world.time += DAY
    put = world.storage.put

    def refused(name: str, data: Any, *, if_absent: bool = False) -> None:
        if name.startswith("audit/"):
            raise StorageUnreachable("The store takes no leaf.")
        put(name, data, if_absent=if_absent)

    world.storage.put = refused  # type: ignore[method-assign]
    host.look()
    assert host.look().actions == ()
    world.storage.put = put  # type: ignore[method-assign]
    world.time += MINUTE
    host.look()
    (mail,) = world.sinks
    assert (
        mail.subjects.count("Still: The backup of db failed.")
        + sum("wrong" in each for each in mail.subjects)
        == len(mail.subjects) - 1
    )
    assert len(mail.subjects) == 2


def test_missed_times_are_written_down_once_told_once_and_over_when_made_up_for(
    world: World,
) -> None:
    world.time = datetime(2026, 7, 14, 9, 0, tzinfo=UTC)  # three nights nobody was there
    one, two = world.host("one"), world.host("two")
    assert one.look().missed == 3
    two.look(), one.look()
    journal = one.recorder.journal
    assert journal is not None
    leaves = journal.runs(type="schedule")
    assert sorted(run.detail["due"] for run in leaves) == [
        f"2026-07-{day}T02:00:00Z" for day in (12, 13, 14)
    ]
    assert {(run.outcome, run.source, run.detail["job"]) for run in leaves} == {
        ("missed", "db", "backup.db")
    }
    (mail,) = world.sinks
    assert "A backup of db was due and nobody ran it." in mail.taken[0].text
    world.backup()
    real(world)
    one.look(), two.look()
    assert "Fixed: A backup of db was due and nobody ran it." in mail.taken[1].text
    assert {each.kind for each in one.look().wrong} == {"deletion-frozen"}  # after so long a gap
    assert len(mail.taken) == 2


def real(world: World) -> None:
    """A backup whose commit record opens: it serves the schedule."""
    take(world.host().open(), "db", {b"a": b"a" * 1000})


def test_of_a_long_absence_the_oldest_leaf_stands_for_all_before(world: World) -> None:
    world.time = datetime(2026, 9, 10, 9, 0, tzinfo=UTC)
    host = world.host()
    assert host.look().missed == 20
    assert host.look().missed == 0
    journal = host.recorder.journal
    assert journal is not None
    counts = [run.detail["count"] for run in journal.runs(type="schedule")]
    assert counts[:-1] == [1] * 19 and sum(counts) == 61
    assert len(world.sinks[0].taken) == 1


@pytest.mark.parametrize("ahead", [timedelta(days=400), timedelta(days=-9)], ids=["ahead", "back"])
def test_a_clock_that_is_wrong_raises_no_storm(world: World, ahead: timedelta) -> None:
    host, other = world.host("one"), world.host("two")
    real(world)
    world.time += HOUR
    world.time += DAY
    world.backup(outcome="failed")
    host.look()
    (mail,) = world.sinks
    assert len(mail.taken) == 1
    host.ahead = ahead
    for _ in range(5):
        host.look()
        world.time += 10 * MINUTE
    other.look()
    said = "\n".join(message.text for message in mail.taken[1:])
    assert "Fixed" not in said and "nobody ran it" not in said and "could be lost" not in said
    assert len(mail.taken) <= 2 and (len(mail.taken) == 1 or "The clocks of one and" in said)
    host.ahead = timedelta()
    host.look(), host.look(), other.look()
    assert "could be lost" not in "\n".join(message.text for message in mail.taken)
    assert [one.key for one in open_alerts(host.recorder.journal)] == ["backup-failed/db"]  # type: ignore[arg-type]


def test_a_run_that_ended_in_the_time_to_come_stands_before_what_follows(world: World) -> None:
    """A host whose clock was ahead said it failed next year; the backups since are what counts."""
    later = world.time + 300 * DAY
    repository = world.host().open()
    AuditLog(repository).append(Run("backup", "f" * 16, later, later, "db", outcome="failed"))
    world.time += DAY
    world.backup()
    assert world.host().look().well


def test_only_an_escalation_is_there_and_it_is_told_at_once(world: World) -> None:
    world.sinks = [Sink("boss")]
    world.time += DAY
    world.backup(outcome="failed")
    for _ in range(30):
        world.host().look()
        world.time += 10 * MINUTE
    assert world.sinks[0].subjects == ["The backup of db failed."]


def test_without_channels_nothing_is_told_and_what_is_wrong_is_known(world: World) -> None:
    world.sinks = []
    world.time += DAY
    world.backup(outcome="failed")
    carried = world.host().look()
    assert [one.kind for one in carried.wrong] == ["backup-failed"] and carried.open == ()
    assert world.heart.beats == 0


def test_a_job_that_ends_without_a_leaf_is_told_of(world: World) -> None:
    world.table = TABLE | {"schedule": {"expire": "0 5 * * *"}}
    repository = world.host().open()
    world.time = due = datetime(2026, 7, 11, 5, 0, tzinfo=UTC)
    leases = Leases(repository.catalogue, repository.seams, host="one", limit=HOUR)
    lease = leases.take("expire", due, 1)
    leases.end(lease, outcome="failed", exit=2)
    carried = world.host().look()
    assert [one.key for one in carried.wrong if one.kind == "job-failed"] == ["job-failed/expire"]


def test_what_the_journal_lacks_is_told_by_commit_records(world: World) -> None:
    world.time += DAY
    report = take(world.host().open(), "db", {b"a": b"a" * 1000})
    host = world.host()
    host.recorder.opened(host.open())
    configuration, _ = build(TABLE)
    assert configuration is not None and host.recorder.journal is not None
    state = state_of(host.open(), host.recorder.journal, configuration, now=world.time)
    (source,) = state.sources
    assert source.backups[-1].ended == report.snapshot.time
    assert len(source.backups) == 11
    assert source.drill_every is not None and source.known_since is not None
    assert state.free is None, "memory does not tell"
    assert not conditions(state, now=world.time) or all(
        each.kind == "size" or each.kind == "deletion-frozen"
        for each in conditions(state, now=world.time)
    )


def test_a_schedule_is_missed_only_since_it_is_what_it_is(world: World) -> None:
    """Who writes a schedule into a year-old repository has missed nothing."""
    host = world.host()
    world.time += 20 * DAY
    repository = host.open()
    log = AuditLog(repository)
    log.append(
        Run(
            "config",
            "e" * 16,
            world.time,
            world.time,
            detail={"changed": ["source.db.schedule"]},
        )
    )
    world.time += MINUTE
    host.recorder.opened(repository)
    configuration, _ = build(TABLE)
    assert configuration is not None and host.recorder.journal is not None
    seen = look(repository, host.recorder.journal, configuration, now=world.time)
    assert seen.passed == {"backup.db": ()}
    assert seen.state.sources[0].missed == ()


def test_bad_pages_and_shrunk_backups_are_seen(world: World) -> None:
    world.time += DAY
    world.backup(size=100, detail={"bad_pages": 3})
    kinds = {one.kind for one in world.host().look().wrong}
    assert kinds == {"page-corruption", "size", "deletion-frozen"}
    assert world.sinks[0].subjects == ["3 wrong on one"]


def test_a_repository_that_cannot_be_opened_is_told_once_and_its_end_once(tmp_path: Path) -> None:
    mail = Sink()
    channels = [Announced(mail, "warning", False)]
    now = BIRTH

    def tell(fault: str) -> None:
        tell_of_repository(
            str(tmp_path), channels, fault=fault, now=now, host="one", place="s3://here"
        )

    tell("")
    for _ in range(5):
        tell("The store does not answer.")
        now += 10 * MINUTE
    tell(""), tell("")
    assert mail.subjects == [
        "one cannot open the repository.",
        "Fixed: one cannot open the repository.",
    ]
    mail.up = False
    tell("Away."), tell("")
    assert mail.tries == 3 and [*tmp_path.iterdir()] == []
