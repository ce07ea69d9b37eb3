"""A year of the seed's schedule: what it keeps, what it gives back, whom it tells of what went wrong."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from year import DAY, DB, VAULT, Made, Weather, Year

from strongroom.observe.metrics import rows
from strongroom.operations import retaining
from strongroom.operations.browse import find_snapshot
from strongroom.operations.measuring import figures
from strongroom.repository.audit import AuditLog
from strongroom.storage.faulty import flip

START = datetime(2027, 7, 1, 0, 30, tzinfo=UTC)  # over 29 February
END = datetime(2028, 7, 2, 6, 0, tzinfo=UTC)


def noon(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(hour=12, tzinfo=UTC)


class Mishaps:
    """What goes wrong in a year, by the noon at which it begins or ends, and what is to be told of it."""

    def __init__(self, year: Year) -> None:
        self.year = year
        self.at: dict[datetime, list[Callable[[], object]]] = {}
        self.told: Counter[str] = Counter()
        self.off: set[date] = set()  # days of which nobody ran anything at its time

    def noon(self, now: datetime) -> bool:
        planned = self.at.pop(now, [])
        for act in planned:
            act()
        return bool(planned)

    def plan(self, when: datetime, act: Callable[[], object]) -> None:
        self.at.setdefault(when, []).append(act)

    def weather(self, first: datetime, last: datetime, *told: str, **how: object) -> None:
        """From one noon to another the weather is so; then as usual."""
        usual = Weather()

        def turn(how: dict[str, object]) -> None:
            for name, value in how.items():
                setattr(self.year.weather, name, value)

        self.plan(first, lambda: turn(how))
        self.plan(last, lambda: turn({name: getattr(usual, name) for name in how}))
        self.told.update(told)


def a_backup_fails(all: Mishaps, when: datetime) -> None:
    told = (f"backup-failed/{DB}", f"backup-late/{DB}")
    all.weather(when, when + DAY, *told, broken=True)


def backups_fail(all: Mishaps, when: datetime) -> None:
    """Four nights: from the third on nothing is deleted any more."""
    told = (f"backup-failed/{DB}", f"backup-late/{DB}", f"deletion-frozen/{DB}")
    all.weather(when, when + 4 * DAY, *told, broken=True)


def a_source_shrinks(all: Mishaps, when: datetime) -> None:
    all.weather(when, when + DAY, f"size/{DB}", f"deletion-frozen/{DB}", size=12_000)


def a_backup_takes_long(all: Mishaps, when: datetime) -> None:
    all.weather(when, when + DAY, f"duration/{DB}", slow=4)


def the_storage_fills(all: Mishaps, when: datetime) -> None:
    def free(size: int) -> None:
        all.year.storage.free = size << 30

    all.plan(when, lambda: free(15))
    all.plan(when + 3 * DAY, lambda: free(70))
    all.told.update(["space"])


def the_host_is_off(all: Mishaps, when: datetime) -> None:
    def turn(on: bool) -> None:
        all.year.on = on
        if on:
            all.year.wake()

    all.plan(when, lambda: turn(False))
    all.plan(when + 3 * DAY, lambda: turn(True))
    back = when + 3 * DAY
    told = [f"backup-missed/{DB}", f"backup-late/{DB}", f"deletion-frozen/{DB}"]
    first = back.replace(day=1, hour=3)
    if when < first < back:
        told.append(f"backup-missed/{VAULT}")
        before = (first - DAY).replace(day=1)
        told += [f"backup-late/{VAULT}"] * (back - before > 32 * DAY)
    all.told.update(told)
    all.off |= {(when + number * DAY).date() for number in (1, 2)}


def the_channel_is_down(all: Mishaps, when: datetime) -> None:
    """Three nights fail meanwhile; who comes back is told once. The journal is lost at the worst time."""

    def down(so: bool) -> None:
        all.year.sink.down = so

    told = (f"backup-failed/{DB}", f"backup-late/{DB}", f"deletion-frozen/{DB}")
    all.weather(when, when + 3 * DAY, *told, broken=True)
    all.plan(when, lambda: down(True))
    all.plan(when + 2 * DAY, lambda: down(False))
    all.plan(when + DAY, restart(all, shutil.rmtree))


def the_clock_jumps(all: Mishaps, when: datetime) -> None:
    def ahead(days: int) -> None:
        all.year.clocks.ahead = days * DAY
        all.year.wake()

    all.plan(when, lambda: ahead(40))
    all.plan(when + DAY, lambda: ahead(0))
    # Nothing is begun by a clock that is wrong, so nothing is deleted either.
    all.told.update(["clock/host", f"backup-late/{DB}", f"backup-missed/{DB}"])
    if (when + DAY).day == 1:
        all.told.update([f"backup-missed/{VAULT}"])


def restart(all: Mishaps, spoil: Callable[[Path], object]) -> Callable[[], None]:
    def act() -> None:
        all.year.journal.close()
        spoil(all.year.folder / "state")
        all.year.begin()

    return act


def the_journal_is_lost(all: Mishaps, when: datetime) -> None:
    all.plan(when, restart(all, lambda folder: (folder / "journal.sqlite").unlink()))


def the_journal_is_spoiled(all: Mishaps, when: datetime) -> None:
    def spoil(folder: Path) -> None:
        (folder / "journal.sqlite").write_bytes(b"nonsense" * 999)

    all.plan(when, restart(all, spoil))


def a_key_grows_old(all: Mishaps, when: datetime) -> None:
    """The first key is older than it should be; days later there is another, and it is taken away."""
    all.plan(when, lambda: all.year.add_key("second"))
    all.plan(when, lambda: all.year.take_key("first"))
    all.told.update(["key-age/first"])


def a_drill_is_red(all: Mishaps, when: datetime) -> None:
    all.weather(when, when + DAY, f"drill-failed/{DB}", drill_fails=True)


def drills_are_overdue(all: Mishaps, when: datetime) -> None:
    all.weather(when, when + 38 * DAY, f"drill-overdue/{DB}", drills_away=True)


def a_pack_is_damaged(all: Mishaps, when: datetime) -> None:
    name, whole = "", b""

    def spoil() -> None:
        nonlocal name, whole
        names = [one for one in all.year.storage.objects if one.startswith("packs/")]
        name = max(names, key=lambda one: len(all.year.storage.objects[one]))
        whole = all.year.storage.objects[name]
        all.year.storage.objects[name] = flip(whole, 4 * len(whole))

    def mend() -> None:
        if name in all.year.storage.objects:
            all.year.storage.objects[name] = whole

    all.plan(when, spoil)
    all.plan(when + DAY, mend)
    all.told.update(["check-failed"])


# Those that meet a job which seldom comes have their day; the others may have any.
FIXED = {
    a_pack_is_damaged: noon("2027-11-14"),
    a_drill_is_red: noon("2027-12-01"),
    drills_are_overdue: noon("2028-02-01"),
    a_key_grows_old: noon("2028-05-05"),
}
FREE = {
    a_backup_fails: noon("2027-07-20"),
    a_source_shrinks: noon("2027-08-20"),
    a_backup_takes_long: noon("2027-09-10"),
    the_journal_is_lost: noon("2027-09-20"),
    the_storage_fills: noon("2027-10-05"),
    the_host_is_off: noon("2027-10-30"),  # over a first of the month
    the_journal_is_spoiled: noon("2027-11-20"),
    the_channel_is_down: noon("2028-01-09"),
    the_clock_jumps: noon("2028-04-30"),  # over another one
    backups_fail: noon("2028-05-20"),
}


def holds(all: Mishaps) -> None:
    """Somebody keeps a backup for good, and one for a while; somebody brings one back."""
    year = all.year

    def find(number: int) -> Made:
        return [one for one in year.made if one.source == DB][number]

    def keep(number: int, until: datetime | None) -> None:
        one = find(number)
        snapshot = find_snapshot(year.repository, DB, backup=one.id)
        retaining.hold(year.repository, snapshot, until=until, why="audit", now=year.clocks.now())
        year.held[one.id] = until

    all.plan(noon("2027-09-01"), lambda: keep(-3, None))
    all.plan(noon("2027-09-02"), lambda: keep(-3, noon("2027-12-24")))


def test_a_year(tmp_path: Path, verified_once: None) -> None:
    live(Year(tmp_path, START, expire_at="0 5 * * sun,tue,thu"), FREE)  # END is a Sunday


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(6))
def test_a_year_with_its_mishaps_on_other_days(
    tmp_path: Path, verified_once: None, seed: int
) -> None:
    drawn = random.Random(seed)
    # So far behind the one before that nothing is doubted any more; off the fixed ones.
    spans = [noon("2027-07-12") + 22 * number * DAY for number in range(15)]
    taken = [(one - 2 * DAY, one + 3 * DAY) for one in FIXED.values()]
    taken += [(noon("2028-01-26"), noon("2028-03-14")), (noon("2027-11-09"), noon("2027-11-18"))]
    free = [one for one in spans if not any(a <= one + 5 * DAY and one <= b for a, b in taken)]
    days = sorted(drawn.sample(free, len(FREE)))
    order = drawn.sample([*FREE], len(FREE))
    moved = {one: day + drawn.randrange(3) * DAY for one, day in zip(order, days, strict=True)}
    print({one.__name__: f"{day:%Y-%m-%d}" for one, day in moved.items()})
    live(Year(tmp_path, START, seed=seed), moved)


def live(year: Year, free: Mapping[Callable[[Mishaps, datetime], None], datetime]) -> None:
    """A year with what is planned for it; what must be true in the end, and of all that was told."""
    mishaps = Mishaps(year)
    holds(mishaps)
    for mishap, when in {**FIXED, **free}.items():
        mishap(mishaps, when)
    year.until(END, at_noon=mishaps.noon)
    assert mishaps.at == {}
    assert_every_job_ran(year, mishaps.off)
    # Exactly what the policy demands, and everything of it restores.
    year.assert_kept()
    exports = sorted(one.time for one in year.made if one.id in year.kept[VAULT])
    months = [(2027, month) for month in range(8, 13)] + [(2028, month) for month in range(1, 8)]
    assert [(one.year, one.month) for one in exports] == months
    days = sorted(one.time.date() for one in year.made if one.id in year.kept[DB])
    held = [one.time.date() for one in year.made if one.id in year.held and not year.held[one.id]]
    made = {one.time.date() for one in year.made if one.source == DB}
    last = {END.date() - number * DAY for number in range(30)}
    assert days == sorted([*held, *(last & made)])
    # No byte that nothing relies on, once packs that are partly waste are repacked.
    year.prune_to_the_bone()
    year.assert_kept()
    year.assert_nothing_unreachable()
    assert AuditLog(year.repository).verify().faults == []
    assert_figures(year)
    assert year.sink.counted("raise") == mishaps.told
    assert year.sink.counted("resolve") == mishaps.told


def assert_figures(year: Year) -> None:
    """What Prometheus would be told is what the test has counted."""
    told = figures(year.repository, year.journal, year.configuration, now=year.clocks.now())
    found = {(name, *labels): value for name, labels, value in rows(told)}
    for name in (DB, VAULT):
        kept = sorted(one.time for one in year.made if one.id in year.kept[name])
        assert found["backups", name] == len(kept)
        assert found["recoverable_from_timestamp_seconds", name] == kept[0].timestamp()
        assert found["recoverable_until_timestamp_seconds", name] == kept[-1].timestamp()
        assert found["standing", name, "ok"] == 1.0
    wrong = {
        key for key, value in found.items() if value and key[0] in ("condition", "backup_anomaly")
    }
    assert wrong == set()
    assert found["repository_size_bytes",] == sum(map(len, year.storage.objects.values()))
    assert found["repository_free_bytes",] == year.storage.free
    assert found["notify_deliveries_total", "sink", "taken"] == len(year.sink.took)
    assert found["notify_deliveries_total", "sink", "failed"] == year.sink.refused


def assert_every_job_ran(year: Year, off: set[date]) -> None:
    """Each time of each job ran once and well, but where the weather was bad."""
    done = Counter((name, due) for name, due, status in year.ran if status == 0)
    assert set(done.values()) == {1}, {k: v for k, v in done.items() if v > 1}
    bad = {(name, due.date()) for name, due, status in year.ran if status}
    due = {name: {at.date() for each, at in done if each == name} for name, _ in done}
    every = {START.date() + number * DAY for number in range((END - START).days + 1)}
    assert every - due[f"backup.{DB}"] - off <= {one for name, one in bad if name == f"backup.{DB}"}
    firsts = {one for one in every if one.day == 1}
    assert due[f"backup.{VAULT}"] == firsts
    assert (
        len(due["check"]) + len({one for name, one in bad if name == "check"} - due["check"]) == 12
    )


@pytest.mark.parametrize("first", ["2027-10-29", "2028-03-24"])
def test_days_that_are_an_hour_longer_or_shorter(tmp_path: Path, first: str) -> None:
    """02:30 comes twice in October, and never in March: one backup a day all the same."""
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    zone = ZoneInfo("Europe/Berlin")
    year = Year(tmp_path, start, zone='timezone = "Europe/Berlin"', database="30 2 * * *")
    year.until(start + 5 * DAY)
    days = [one.time.astimezone(zone).date() for one in year.made if one.source == DB]
    assert days == [start.date() + number * DAY for number in range(5)]
    year.assert_kept()
