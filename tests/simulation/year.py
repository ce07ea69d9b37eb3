"""A year of the seed's schedule in one process: real jobs, leases, engine, log; a clock that is turned.

    Year        the world: a store with a clock of its own, one host, two small vaults of files
    wake        what `run-due` does at a moment: judge, take the lease, run the steps, tell
    assert_…    what must hold, asked of the storage and of the sinks, not of what the program says

The database is a vault of files here: what a database's bytes are makes no difference to when
things happen. The month against PostgreSQL is `tests/acceptance/test_month.py`.

Rule: the oracle for what must be there knows dates and nothing of `rules/retention.py`.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rooms import QUIET, drawn, make_identity, noise, reader_keys, restore
from strongroom import wiring
from strongroom.cli.verbs.check import coverage
from strongroom.config.loading import load
from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.format import pack as packs
from strongroom.format import segment
from strongroom.keys.keyfile import KeyFileHolder
from strongroom.observe.channels.base import NotTold
from strongroom.observe.journal import Journal
from strongroom.observe.telling import Announced
from strongroom.operations import alerting, clocks, retaining
from strongroom.operations.back_up import back_up
from strongroom.operations.browse import list_snapshots
from strongroom.operations.check import check
from strongroom.operations.recording import Recorder, Who
from strongroom.operations.scheduling import jobs_of, judge, run_job
from strongroom.progress import Silent
from strongroom.repository import identity as identities
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.keyring import Keyring, add_slot, list_slots
from strongroom.repository.leases import Leases
from strongroom.repository.pruning import Pruner, Rules
from strongroom.repository.repository import Repository
from strongroom.repository.seams import Seams
from strongroom.rules.drill import OUTCOME, Step, detail_of
from strongroom.rules.drill import judge as verdict_of
from strongroom.rules.messages import Message
from strongroom.rules.proof import HURT, WHOLE
from strongroom.rules.schedule import Verdict
from strongroom.rules.times import show_time
from strongroom.storage.base import Buffer, Entry
from strongroom.storage.memory import MemoryStorage

DB, VAULT = "stakazo-db", "memory-vault"
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
CONFIG = """\
{zone}
[repository]
url = "memory-of-the-test"
key_age = "300d"

[schedule]
check = "30 4 15 * *"
expire = "{expire}"
drill = "0 6 2 * *"

[schedule.job.quarter]
cron = "0 8 3 1,4,7,10 *"
argv = ["drill", "run", "{vault}", "--at", "oldest"]

[source.stakazo-db]
type = "files"
path = "{folder}/db"
schedule = "{database}"
promise = {{ rpo = "26h", rto = "4h", keep = "30d", drill = "70d" }}
retention = {{ minimum = 3 }}

[source.memory-vault]
type = "files"
path = "{folder}/vault"
schedule = "0 3 1 * *"
promise = {{ rpo = "32d", rto = "24h", keep = "12 months", drill = "130d" }}
"""


class Clocks:
    """The store's clock, which is turned, and the host's, which may be ahead of it."""

    def __init__(self, start: datetime) -> None:
        self.true, self.ahead = start, timedelta(0)

    def now(self) -> datetime:
        """The host's; a millisecond later each time, so that no two things are of one moment."""
        self.true += timedelta(milliseconds=1)
        return self.true + self.ahead

    def steady(self) -> float:
        return self.true.timestamp()


class Shelf(MemoryStorage):
    """The store: by the clock that is turned, names kept in order, and room that a test takes away."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__(now=lambda: clocks.true.timestamp())  # noqa: PLW0108 -- it moves
        self._names: list[str] = []
        self.free, self.total = 80 << 30, 100 << 30

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        super().put(name, data, if_absent=if_absent)
        at = bisect_left(self._names, name)
        if at == len(self._names) or self._names[at] != name:
            self._names.insert(at, name)

    def list(self, prefix: str) -> Iterator[Entry]:
        at, found = bisect_left(self._names, prefix), []
        while at < len(self._names) and self._names[at].startswith(prefix):
            name = self._names[at]
            if name in self.objects:
                found.append(Entry(name, len(self.objects[name]), self._modified.get(name)))
            at += 1
        yield from found

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.objects:
                super().delete([name])
                self._names.pop(bisect_left(self._names, name))

    def free_space(self) -> int | None:
        return self.free

    def total_space(self) -> int | None:
        return self.total


@dataclass(frozen=True)
class Made:
    """A backup that was made, as the test saw it."""

    id: str
    source: str
    time: datetime


@dataclass
class Weather:
    """What goes wrong now; turned by the test."""

    broken: bool = False  # the database cannot be read
    slow: int = 1  # so many times the usual duration
    size: int = 40_000  # bytes of the database
    drill_fails: bool = False
    drills_away: bool = False  # nobody runs them


class Sink:
    """A channel that keeps what it took; while it is down it takes nothing."""

    name, each = "sink", True

    def __init__(self) -> None:
        self.down, self.refused = False, 0
        self.took: list[Message] = []

    def send(self, message: Message) -> None:
        if self.down:
            self.refused += 1
            raise NotTold("It does not answer.")
        self.took.append(message)

    def counted(self, word: str) -> Counter[str]:
        """How often each key was told with a word."""
        return Counter(one.key for one in self.took if one.word == word)


@dataclass
class Year:
    """One host and one store from `start` on. `zone` is a line of the configuration."""

    folder: Path
    start: datetime
    zone: str = ""
    database: str = "0 2 * * *"
    expire_at: str = "0 5 * * *"
    seed: object = "year"
    weather: Weather = field(default_factory=Weather)
    made: list[Made] = field(default_factory=list)
    kept: dict[str, set[str]] = field(default_factory=lambda: {DB: set(), VAULT: set()})
    held: dict[str, datetime | None] = field(default_factory=dict)
    proved: set[str] = field(default_factory=set)
    ran: list[tuple[str, datetime, int]] = field(default_factory=list)
    on: bool = True
    sink: Sink = field(default_factory=Sink)
    open: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clocks = Clocks(self.start)
        self.storage = Shelf(self.clocks)
        keyset = reader_keys()
        assert keyset.admin_private is not None
        body = replace(make_identity(keyset), created=self.start)
        self.storage.put(identities.NAME, identities.encode(body, keyset.admin_private))
        for name in ("db", "vault", "state", "cache"):
            (self.folder / name).mkdir()
        path = self.folder / "strongroom.toml"
        path.write_text(
            CONFIG.format(
                folder=self.folder,
                zone=self.zone,
                database=self.database,
                expire=self.expire_at,
                vault=VAULT,
            )
        )
        self.configuration = load(config=str(path), environ={}).configuration
        self.jobs = jobs_of(self.configuration)
        self.add_key("first")
        self.fill(VAULT, 30_000)
        self.fill(DB, 40_000)
        self.begin()

    def add_key(self, label: str) -> None:
        """A holder of the repository's keys, made now."""
        holder = KeyFileHolder(drawn(label)(32), random=drawn(label))
        add_slot(self.storage, reader_keys(), holder, label, self.clocks.true)

    def take_key(self, label: str) -> None:
        (slot,) = [one for one in list_slots(self.storage) if one.label == label]
        self.storage.delete([slot.name])

    def begin(self) -> None:
        """Open everything as a new process does."""
        seams = Seams(self.clocks.now, self.clocks.steady, drawn((self.seed, self.clocks.true)))
        self.repository = Repository(
            self.storage,
            identities.load(self.storage),
            Keyring({1: reader_keys()}),
            seams=seams,
            settings=QUIET,
        )
        self.recorder = Recorder(
            str(self.folder / "state"), Who("host", "backup"), now=seams.now, random=seams.random
        )
        self.recorder.opened(self.repository)
        self.leases = Leases(
            self.repository.catalogue, seams, host="host", limit=timedelta(minutes=20)
        )

    @property
    def journal(self) -> Journal:
        assert self.recorder.journal is not None
        return self.recorder.journal

    def fill(self, source: str, size: int) -> None:
        """What the source holds today: two files that stay, one that is new."""
        folder = Path(self.configuration.source[source].path)  # type: ignore[union-attr]
        day = self.clocks.true.date().isoformat()
        for name, part in (("a", size // 2), ("b", size // 3)):
            path = folder / name
            if not path.exists() or path.stat().st_size != part:
                path.write_bytes(noise((source, name), part))
        (folder / "today").write_bytes(noise((source, day), size // 6))

    # -- time ------------------------------------------------------------------------------

    def until(
        self, end: datetime, *, at_noon: Callable[[datetime], None] = lambda day: None
    ) -> None:
        """Live until `end`: wake whenever something is due, and at noon."""
        while True:
            now = self.clocks.true
            noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
            noon += DAY * (noon <= now)
            due = min(job.cron.next(now, job.zone) for job in self.jobs) if self.on else noon
            if min(due, noon) >= end:
                self.clocks.true = end
                return
            self.clocks.true = min(due, noon) + timedelta(seconds=20)
            if noon <= due:
                odd = at_noon(noon) or self.open or self.weather != Weather()
                if self.on and (odd or noon.weekday() == 0):
                    self.tell()
            elif self.on:
                self.wake()

    def wake(self) -> None:
        """What is due is run; then it is told what is wrong."""
        tried: set[str] = set()
        odd = bool(self.clocks.ahead)
        while True:
            now = self.clocks.now()
            verdicts = judge(self.repository, self.jobs, self.leases, journal=self.journal, now=now)
            if not tried and any(one.passed for one in verdicts):
                self.tell()
            todo = [one for one in verdicts if one.runs and one.job.name not in tried]
            if not todo:
                break
            tried.add(todo[0].job.name)
            try:
                status = run_job(self.leases, todo[0], self._step, limit=timedelta(minutes=20))
            except StrongroomError as fault:
                status = fault.exit_status
            self.ran.append((todo[0].job.name, todo[0].due, status))
            odd = odd or status != 0
        # Where nothing is wrong, once a week is soon enough: a year in seconds.
        if odd or self.open or self.weather != Weather():
            self.tell()

    def tell(self) -> None:
        """What `run-due` does in the end: what is wrong is told, what is over as well."""
        carried = alerting.carry_out(
            self.repository,
            self.journal,
            self.configuration,
            [Announced(self.sink, "warning", False)],
            now=self.clocks.now(),
            host="host",
            recorder=self.recorder,
        )
        self.open = {one.key for one in carried.open}

    # -- steps -----------------------------------------------------------------------------

    def _step(
        self, argv: Sequence[str], verdict: Verdict, sign: Callable[[], bool], every: float
    ) -> int:
        del every
        assert sign()
        cause = {"job": verdict.job.name, "due": show_time(verdict.due)}
        self.recorder._who = Who("host", "backup", cause=cause)
        verb, *words = argv
        try:
            act: Callable[..., int] = {
                "backup": self.back_up,
                "check": self.check,
                "expire": self.expire,
                "prune": self.prune,
                "drill": self.drill,
            }[verb]
            return act(verdict, *words)
        except StrongroomError as fault:
            return fault.exit_status

    def back_up(self, verdict: Verdict, name: str) -> int:
        self.fill(name, self.size_of(name))
        with self.recorder.recorded("backup", source=name, trigger=verdict.trigger) as run:  # type: ignore[arg-type]
            if self.weather.broken and name == DB:
                raise Damaged("The source cannot be read.")
            source = wiring.make_source(
                name,
                self.configuration.source[name],
                repository=self.repository,
                cache_dir=str(self.folder / "cache"),
                environ={},
                jobs=1,
                configuration=self.configuration,
            )
            self.clocks.true += 2 * MINUTE * self.weather.slow
            report = back_up(self.repository, source, progress=Silent())
            run.made(report.snapshot)
        self.made.append(Made(report.snapshot.id, name, report.snapshot.time))
        self.kept[name].add(report.snapshot.id)
        return 0

    def size_of(self, name: str) -> int:
        return self.weather.size if name == DB else 30_000

    def check(self, verdict: Verdict, *words: str) -> int:
        with self.recorder.recorded("check", trigger=verdict.trigger) as run:  # type: ignore[arg-type]
            report = check(
                self.repository, level=3, progress=Silent(), state=str(self.folder / "cache/read")
            )
            run.problems = len(report.findings)
            run.detail |= {
                "level": report.level,
                "coverage": coverage(report),
                WHOLE: report.whole,
                HURT: report.damaged_snapshots,
            }
            self.proved |= set.union(*self.kept.values())
            if report.findings:
                self.proved -= {*report.damaged_snapshots}
                raise Damaged(f"{len(report.findings)} things are not as written.")
        return 0

    def judged(self, now: datetime) -> Iterator[retaining.Judged]:
        """The plan of each source, as `expire` and `prune` make it."""
        apart = clocks.clock_difference(self.storage, self.repository.seams)
        assert apart is not None
        proof = retaining.proof_of(self.journal)
        for name, table in self.configuration.source.items():
            yield retaining.judge(
                self.repository,
                name,
                retaining.policy_of(self.configuration, table),
                physical=False,
                proof=proof,
                now=now,
                store_now=now + timedelta(seconds=apart),
            )

    def expire(self, verdict: Verdict) -> int:
        frozen: dict[str, tuple[str, ...]] = {}
        with self.recorder.recorded("expire", trigger=verdict.trigger) as run:  # type: ignore[arg-type]
            now = self.clocks.now()
            for judged in self.judged(now):
                retaining.expire(self.repository, judged, now=now)
                if judged.plan.frozen:
                    frozen[judged.source] = judged.plan.frozen
            run.detail |= {"frozen": {name: [*why] for name, why in frozen.items()}}
            run.problems = len(frozen)
            self.decided(now, frozen)
            if frozen:
                raise Refused("Nothing may be deleted now.")
        return 0

    def prune(self, verdict: Verdict) -> int:
        with self.recorder.recorded("prune", trigger=verdict.trigger):  # type: ignore[arg-type]
            spared = {one.source for one in self.judged(self.clocks.now()) if one.plan.frozen}
            rules = Rules(pack_size=self.repository.settings.pack_size, spared=frozenset(spared))
            Pruner(self.repository, rules=rules, progress=Silent()).run()
        return 0

    def prune_to_the_bone(self) -> None:
        """With `--live 1`; twice, so that what the first one left condemned is gone."""
        rules = Rules(live=1.0, pack_size=self.repository.settings.pack_size)
        for _ in range(2):
            Pruner(self.repository, rules=rules, progress=Silent()).run()

    def drill(self, verdict: Verdict, _: str, name: str, *at: str) -> int:
        """A restore through the one read path, compared with what was there; its leaf as a drill's."""
        if self.weather.drills_away:
            return 4
        with self.recorder.recorded("drill", source=name, trigger=verdict.trigger) as run:  # type: ignore[arg-type]
            there = list_snapshots(self.repository, name).snapshots
            snapshot = (
                there[0] if at[-1] == "oldest" else random.Random(len(self.ran)).choice(there)
            )
            run.of(snapshot)
            found = restore(self.repository, snapshot)
            whole = {b"a", b"b", b"today"} == {path for path in found if found[path]}
            held = whole and not (self.weather.drill_fails and name == DB)
            self.clocks.true += 5 * MINUTE
            steps = [Step("restore", "green", 300_000), Step("compare", "green" if held else "red")]
            run.detail |= detail_of(
                steps,
                at=snapshot.time,
                kind="files",
                restore_ms=300_000,
                total_ms=300_000,
                target_seconds=4 * 3600,
                report="",
            )
            self.proved |= {snapshot.id}
            if OUTCOME[verdict_of(steps)] != "done":
                self.proved -= {snapshot.id}
                raise Damaged("The drill was not green.")
        return 0

    # -- what must hold --------------------------------------------------------------------

    def may_go(self, one: Made, now: datetime) -> bool:
        """The seed's policy, by the calendar alone: 30 days; the same day twelve months later."""
        until = self.held.get(one.id, one.time)
        if until is None or now < until:
            return False
        if one.source == DB:
            return now >= one.time + timedelta(days=30)
        try:
            end = one.time.replace(year=one.time.year + 1)
        except ValueError:  # 29 February
            end = datetime(one.time.year + 1, 3, 1, tzinfo=UTC)
        return now >= end

    def _demanded(self, mine: Sequence[Made], now: datetime) -> set[str]:
        """What is not over, and the newest so many that a check or a drill proved."""
        stay = {one.id for one in mine if not self.may_go(one, now)}
        least = 3 if mine and mine[0].source == DB else 1
        newest = sorted(mine, key=lambda one: one.time, reverse=True)
        for group in ([one for one in newest if one.id in self.proved], newest):
            for one in group:
                if len(stay & {each.id for each in group}) < least:
                    stay.add(one.id)
        return stay

    def decided(self, now: datetime, frozen: Container[str]) -> None:
        """An expire has decided at `now`, by this host's clock: what must stay from now on."""
        for name in (DB, VAULT):
            mine = [one for one in self.made if one.source == name and one.id in self.kept[name]]
            if name not in frozen:
                self.kept[name] = self._demanded(mine, now)
        self.assert_kept()

    def assert_kept(self) -> None:
        """What is a backup is what the policy demands, to the backup."""
        listing = list_snapshots(self.repository)
        for name in (DB, VAULT):
            there = {one.id for one in listing.snapshots if one.source == name}
            assert there == self.kept[name], (name, self.clocks.true)

    def assert_nothing_unreachable(self) -> None:
        """Walk every object: each is needed by a backup that is there, or tells of what was done."""
        snapshots = list_snapshots(self.repository)
        assert snapshots.expired == [] and snapshots.damaged == []
        names = {one.name: one for one in snapshots.snapshots}
        wanted: set[tuple[str, int]] = set()
        for one in snapshots.snapshots:
            refs = self.repository.catalogue.open_refs(f"refs/{one.source}/{one.id}")
            for session, held in refs.frames.items():
                wanted |= {(session, n) for first, after in held for n in range(first, after)}
        told = self._told(names)
        known = re.compile(r"strongroom\.json|keys/.*|audit/.*|gc/\d{8}\.(condemn|done)|leases/.*")
        for name in self.storage.objects:
            if known.fullmatch(name) or name in names:
                continue
            if name.startswith("refs/"):
                assert any(name == f"refs/{o.source}/{o.id}" for o in names.values()), name
            elif name.startswith("sessions/"):
                assert any(o.session in name for o in names.values()), name
            elif name.startswith("fates/"):
                assert f"snapshots/{name.split('/', 1)[1].rsplit('/', 1)[0]}" in names, name
            elif name.startswith("index/"):
                assert name in told, f"{name} tells of nothing"
            else:
                assert name.startswith(("packs/", "trees/")), name
                rows = self._footer(name)
                assert rows <= wanted, f"{name} holds {sorted(rows - wanted)[:3]}"
                wanted_here = rows & wanted
                assert wanted_here, name
        for one in snapshots.snapshots:
            restore(self.repository, one)

    def _told(self, names: dict[str, Snapshot]) -> set[str]:
        """Index segments that tell of a pack which is there."""
        found = set()
        for name in self.storage.objects:
            if name.startswith("index/"):
                rows = self.repository.catalogue.open_index(name)
                there = {packs.object_name(*one) for one in rows.packs} & {*self.storage.objects}
                if there:
                    found.add(name)
        del names
        return found

    def _footer(self, name: str) -> set[tuple[str, int]]:
        from strongroom.repository.footers import read_footer  # noqa: PLC0415

        data = self.storage.objects[name]
        rows: segment.Segment = read_footer(
            self.storage, self.repository.catalogue, name, len(data)
        )
        return {
            (rows.sessions[row["session"]].id.hex(), int(row["sequence"])) for row in rows.frames
        }
