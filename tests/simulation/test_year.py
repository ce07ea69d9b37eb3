"""A year of the seed's schedule: what it keeps, what it gives back, whom it tells of what went wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from year import DAY, DB, VAULT, Made, Year

from strongroom.operations import retaining
from strongroom.operations.browse import find_snapshot
from strongroom.repository.audit import AuditLog
from strongroom.storage.faulty import flip

START = datetime(2027, 7, 1, 0, 30, tzinfo=UTC)  # over 29 February
END = datetime(2028, 7, 2, 6, 0, tzinfo=UTC)


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(hour=12, tzinfo=UTC)


class Mishaps:
    """What goes wrong in a year, by the noon at which it begins or ends, and what is to be told of it."""

    def __init__(self, year: Year) -> None:
        self.year = year
        self.at: dict[datetime, list[Callable[[], None]]] = {}
        self.told: Counter[str] = Counter()

    def noon(self, now: datetime) -> None:
        for act in self.at.pop(now, ()):
            act()

    def plan(self, when: str, act: Callable[[], None]) -> None:
        self.at.setdefault(day(when), []).append(act)

    def weather(self, first: str, last: str, told: list[str], **how: object) -> None:
        """From one noon to another the weather is so; then as before."""
        before = {name: getattr(self.year.weather, name) for name in how}
        self.plan(first, lambda: [setattr(self.year.weather, *one) for one in how.items()] and None)
        self.plan(
            last, lambda: [setattr(self.year.weather, *one) for one in before.items()] and None
        )
        self.told.update(told)


def failing_backups(all: Mishaps) -> None:
    all.weather(
        "2027-07-20", "2027-07-21", [f"backup-failed/{DB}", f"backup-late/{DB}"], broken=True
    )
    # Three nights: nothing is deleted any more.
    all.weather(
        "2028-05-10",
        "2028-05-14",
        [f"backup-failed/{DB}", f"backup-late/{DB}", f"deletion-frozen/{DB}"],
        broken=True,
    )


def a_source_shrinks(all: Mishaps) -> None:
    all.weather("2027-08-20", "2027-08-21", [f"size/{DB}", f"deletion-frozen/{DB}"], size=12_000)


def a_backup_takes_long(all: Mishaps) -> None:
    all.weather("2027-09-10", "2027-09-11", [f"duration/{DB}"], slow=4)


def the_storage_fills(all: Mishaps) -> None:
    def free(size: int) -> None:
        all.year.storage.free = size << 30

    all.plan("2027-10-05", lambda: free(15))
    all.plan("2027-10-08", lambda: free(70))
    all.told.update(["space"])


def the_host_is_off(all: Mishaps) -> None:
    def turn(on: bool) -> None:
        all.year.on = on
        if on:
            all.year.wake()

    all.plan("2027-10-20", lambda: turn(False))
    all.plan("2027-10-23", lambda: turn(True))


def a_drill_is_red(all: Mishaps) -> None:
    all.weather("2027-12-01", "2027-12-02", [f"drill-failed/{DB}"], drill_fails=True)


def drills_are_overdue(all: Mishaps) -> None:
    all.weather("2028-02-01", "2028-03-10", [f"drill-overdue/{DB}"], drills_away=True)


def a_pack_is_damaged(all: Mishaps) -> None:
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

    all.plan("2027-11-14", spoil)
    all.plan("2027-11-15", mend)
    all.told.update(["check-failed"])


def the_channel_is_down(all: Mishaps) -> None:
    def down(so: bool) -> None:
        all.year.sink.down = so

    all.weather(
        "2028-01-09", "2028-01-12", [f"backup-failed/{DB}", f"backup-late/{DB}"], broken=True
    )
    all.told.update([f"deletion-frozen/{DB}"])
    all.plan("2028-01-08", lambda: down(True))
    all.plan("2028-01-11", lambda: down(False))


def the_clock_jumps(all: Mishaps) -> None:
    def ahead(days: int) -> None:
        all.year.clocks.ahead = days * DAY
        all.year.wake()

    all.plan("2028-04-20", lambda: ahead(40))
    all.plan("2028-04-21", lambda: ahead(0))
    all.told.update(["clock", f"backup-late/{DB}"])  # a job is not begun by a clock that is wrong


def the_journal_is_lost(all: Mishaps) -> None:
    folder = all.year.folder / "state"

    def restart(spoil: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            all.year.journal.close()
            spoil()
            all.year.begin()

        return act

    journal = folder / "journal.sqlite"
    all.plan("2027-09-20", restart(journal.unlink))
    all.plan("2027-11-20", restart(lambda: journal.write_bytes(b"nonsense" * 999) and None))
    all.plan("2028-01-10", restart(lambda: shutil.rmtree(folder)))  # while something is wrong


MISHAPS = (
    failing_backups, a_source_shrinks, a_backup_takes_long, the_storage_fills, the_host_is_off,
    a_drill_is_red, drills_are_overdue, a_pack_is_damaged, the_channel_is_down, the_clock_jumps,
    the_journal_is_lost,
)  # fmt: skip


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

    all.plan("2027-09-01", lambda: keep(-3, None))
    all.plan("2027-09-02", lambda: keep(-3, day("2027-12-24")))


def test_a_year(tmp_path: Path, verified_once: None) -> None:
    year = Year(tmp_path, START)
    mishaps = Mishaps(year)
    for mishap in (*MISHAPS, holds):
        mishap(mishaps)
    year.until(END, at_noon=mishaps.noon)
    assert mishaps.at == {}
    for one in year.sink.took:
        if one.word != "remind":
            print(one.at, one.word, one.key)
    print([one for one in year.ran if one[2]])
    assert_every_job_ran(year)
    # Exactly what the policy demands, and everything of it restores.
    year.assert_kept()
    exports = sorted(one.time for one in year.made if one.id in year.kept[VAULT])
    assert [f"{one:%Y-%m-%d}" for one in exports] == [
        *(f"2027-{month:02}-01" for month in range(8, 13)),
        *(f"2028-{month:02}-01" for month in range(1, 8)),
    ]
    days = sorted(one.time.date() for one in year.made if one.id in year.kept[DB])
    held = [
        one.time.date() for one in year.made if year.held.get(one.id, day("2027-07-01")) is None
    ]
    assert days == sorted([*held, *(END.date() - number * DAY for number in range(30))])
    # No byte that nothing relies on, once packs that are partly waste are repacked.
    year.prune_to_the_bone()
    year.assert_kept()
    year.assert_nothing_unreachable()
    assert AuditLog(year.repository).verify().faults == []
    assert year.sink.counted("raise") == mishaps.told
    assert year.sink.counted("resolve") == mishaps.told


def assert_every_job_ran(year: Year) -> None:
    """Each time of each job ran once and well, but where the weather was bad."""
    done = Counter((name, due) for name, due, status in year.ran if status == 0)
    assert set(done.values()) == {1}, {k: v for k, v in done.items() if v > 1}
    bad = {(name, due.date()) for name, due, status in year.ran if status}
    due = {name: {at.date() for each, at in done if each == name} for name, _ in done}
    every = {START.date() + number * DAY for number in range((END - START).days + 1)}
    off = {datetime(2027, 10, one, tzinfo=UTC).date() for one in (21, 22)}
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
