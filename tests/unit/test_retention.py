"""rules/retention.py: what stays, why, and until when. No clock but the argument."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.durations import Duration, parse_duration
from strongroom.rules.retention import Backup, Hold, Plan, Policy, plan_retention
from strongroom.rules.times import show_time

BERLIN = ZoneInfo("Europe/Berlin")
GOLDEN = os.path.join(os.path.dirname(__file__), "..", "golden", "retention")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def backup(time: str | datetime, size: int = 1000, **more: object) -> Backup:
    moment = at(time) if isinstance(time, str) else time
    return Backup(f"{moment:%Y%m%d%H%M}", moment, size, **more)  # type: ignore[arg-type]


def daily(first: str, count: int, **more: object) -> list[Backup]:
    return [backup(at(first) + timedelta(days=day), **more) for day in range(count)]


def stays(plan: Plan) -> list[str]:
    return [row.backup.id for row in plan.rows if row.stays]


# -- the seed's two promises -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("born", "span", "zone", "until"),
    [
        ("2026-01-31T02:00:00+00:00", "30d", UTC, "2026-03-02T02:00:00+00:00"),
        ("2028-01-31T02:00:00+00:00", "30d", UTC, "2028-03-01T02:00:00+00:00"),
        ("2026-01-31T02:00:00+00:00", "1 month", UTC, "2026-03-01T00:00:00+00:00"),
        ("2026-01-28T02:00:00+00:00", "1 month", UTC, "2026-02-28T02:00:00+00:00"),
        ("2028-02-29T03:00:00+00:00", "12 months", UTC, "2029-03-01T00:00:00+00:00"),
        ("2027-03-01T03:00:00+00:00", "12 months", UTC, "2028-03-01T03:00:00+00:00"),
        ("2026-12-01T03:00:00+00:00", "12 months", UTC, "2027-12-01T03:00:00+00:00"),
        # It is already the first there, and summer time there when the month is over.
        ("2026-02-28T23:30:00+00:00", "1 month", BERLIN, "2026-03-31T22:30:00+00:00"),
        ("2026-02-28T23:30:00+00:00", "1 month", UTC, "2026-03-28T23:30:00+00:00"),
        ("2026-03-28T02:00:00+00:00", "24h", BERLIN, "2026-03-29T02:00:00+00:00"),
    ],
)
def test_a_promise_ends_to_the_second(born: str, span: str, zone: ZoneInfo, until: str) -> None:
    keep, end = parse_duration(span), at(until)
    assert keep.after(at(born), zone) == end
    policy = Policy(keep=keep, zone=zone)
    others = [backup(end - timedelta(days=1)), backup(end - timedelta(hours=12))]
    for now, here in ((end - timedelta(seconds=1), True), (end, False)):
        row = plan_retention([backup(born), *others], policy, now=now).rows[0]
        assert row.stays is here, row
        if here:
            assert row.until == end
            assert row.reasons == (f"promised for {keep}, until {show_time(end)}",)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
    st.integers(1, 30),
    st.sampled_from([UTC, BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Pacific/Apia")]),
)
def test_months_are_never_short(moment: datetime, months: int, zone: ZoneInfo) -> None:
    """Whoever counts on the calendar of the zone finds the same day, or the first after it."""
    born = moment.replace(tzinfo=UTC)
    end = Duration(months=months).after(born, zone).astimezone(zone)
    local = born.astimezone(zone)
    assert (end.year * 12 + end.month) - (local.year * 12 + local.month) in (months, months + 1)
    assert end.day == local.day or end.day in (1, 2)  # 2: a day that a zone skipped


def test_thirty_days_of_daily_backups_are_thirty() -> None:
    taken = daily("2027-12-01T02:00:05+00:00", 120)  # over a leap day
    here: list[Backup] = []
    for each in taken:
        here.append(each)
        plan = plan_retention(here, Policy(keep=Duration(seconds=30 * 86400)), now=each.time)
        assert plan.frozen == ()
        here = [row.backup for row in plan.rows if row.stays]
        assert here == taken[: taken.index(each) + 1][-30:]


def test_twelve_months_of_monthly_exports_are_twelve() -> None:
    taken = [backup(datetime(2027 + m // 12, m % 12 + 1, 1, 3, tzinfo=UTC)) for m in range(40)]
    here: list[Backup] = []
    for each in taken:
        here.append(each)
        plan = plan_retention(here, Policy(keep=Duration(months=12)), now=each.time)
        assert plan.frozen == ()
        here = [row.backup for row in plan.rows if row.stays]
        assert here == taken[: taken.index(each) + 1][-12:]


# -- counting ----------------------------------------------------------------------------------


def test_grandfather_father_son() -> None:
    """A year of days and three on Sundays; the whole plan is a golden file."""
    taken = daily("2025-12-20T02:00:00+01:00", 390, stored=None)
    policy = Policy(last=2, daily=7, weekly=5, monthly=12, yearly=3, zone=BERLIN)
    now = taken[-1].time + timedelta(hours=1)
    plan = plan_retention(taken, policy, now=now)
    lines = [
        f"{row.backup.id} {'stays' if row.stays else 'goes'}: {'; '.join(row.reasons)}"
        for row in plan.rows
    ]
    golden("gfs.txt", lines)


def golden(name: str, lines: list[str]) -> None:
    path = os.path.join(GOLDEN, name)
    text = "\n".join(lines) + "\n"
    if os.environ.get("STRONGROOM_WRITE_GOLDEN"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    with open(path, encoding="utf-8") as file:
        assert text == file.read()


def test_trap_61_a_backup_that_cannot_be_restored_fills_no_place() -> None:
    """Trap 61: three of which one is broken are two."""
    taken = daily("2026-11-01T02:00:00+00:00", 5)
    taken[4] = backup(taken[4].time, good=False)
    plan = plan_retention(taken, Policy(last=2), now=taken[4].time)
    assert stays(plan) == [taken[2].id, taken[3].id]
    assert not plan.rows[4].stays


def test_days_are_those_of_the_zone() -> None:
    late, early = backup("2026-11-24T22:30:00+00:00"), backup("2026-11-24T23:30:00+00:00")
    now = at("2026-11-25T00:30:00+00:00")
    assert stays(plan_retention([late, early], Policy(daily=7), now=now)) == [early.id]
    berlin = plan_retention([late, early], Policy(daily=7, zone=BERLIN), now=now)
    assert stays(berlin) == [late.id, early.id]
    assert berlin.rows[1].reasons == ("daily 1 of 7: the last of 2026-11-25",)


# -- recovery window, minimum, holds -----------------------------------------------------------


def test_the_recovery_window_begins_on_a_base_before_it() -> None:
    taken = [
        backup(
            f"2026-11-{day:02}T02:00:00+00:00", base=True, stop=at(f"2026-11-{day:02}T02:10:00Z")
        )
        for day in range(1, 26)
    ]
    now = at("2026-11-25T02:05:00+00:00")
    plan = plan_retention(taken, Policy(pitr=parse_duration("7d")), now=now)
    # The window opens on the 18th at 02:05, five minutes before that day's backup has its stop.
    assert stays(plan)[0] == "202611170200"
    assert plan.rows[16].reasons == ("the base from which 2026-11-18T02:05:00Z is recovered",)
    assert len(stays(plan)) == 9


def test_a_base_that_is_not_good_opens_no_window() -> None:
    taken = [
        backup("2026-11-10T02:00:00+00:00", base=True),
        backup("2026-11-11T02:00:00+00:00", base=True, good=False),
        backup("2026-11-24T02:00:00+00:00", base=True),
    ]
    plan = plan_retention(
        taken, Policy(pitr=parse_duration("7d")), now=at("2026-11-25T02:00:00+00:00")
    )
    assert stays(plan) == [taken[0].id, taken[2].id]


def test_verified_backups_never_fall_below_the_minimum() -> None:
    taken = daily("2026-11-01T02:00:00+00:00", 10)
    for at_ in (1, 2, 3):
        taken[at_] = backup(taken[at_].time, verified=True)
    plan = plan_retention(taken, Policy(last=3, minimum=2), now=taken[-1].time)
    assert stays(plan) == [each.id for each in (taken[2], taken[3], *taken[7:])]
    assert plan.rows[2].reasons == ("never fewer than 2 verified",)


def test_something_stays_when_everything_is_old() -> None:
    taken = daily("2026-01-01T02:00:00+00:00", 3)
    plan = plan_retention(
        taken[:2], Policy(keep=parse_duration("30d")), now=at("2027-01-01T00:00Z")
    )
    assert stays(plan) == [taken[1].id]


def test_holds() -> None:
    taken = daily("2026-11-01T02:00:00+00:00", 10)
    holds = [
        Hold(taken[0].id, None, "the auditor asked"),
        Hold(taken[1].id, at("2026-12-01T00:00:00Z")),
        Hold(taken[2].id, at("2026-11-05T00:00:00Z")),
        Hold("another", None),
    ]
    plan = plan_retention(taken, Policy(last=1), now=taken[-1].time, holds=holds)
    assert stays(plan) == [taken[0].id, taken[1].id, taken[9].id]
    assert plan.rows[0].reasons == ("held for good: the auditor asked",)
    assert plan.rows[1].reasons == ("held until 2026-12-01T00:00:00Z",)
    assert plan.rows[2].reasons == ("no rule keeps it",)


def test_without_a_rule_everything_stays() -> None:
    taken = daily("2020-01-01T02:00:00+00:00", 5)
    plan = plan_retention(taken, Policy(), now=taken[-1].time)
    assert plan.goes == ()
    assert plan.rows[0].reasons == ("no retention is configured: everything stays",)


# -- freezing ----------------------------------------------------------------------------------

MONTH = Policy(keep=parse_duration("30d"))


def frozen(taken: list[Backup], now: str, store_now: str | None = None) -> str:
    plan = plan_retention(
        taken, MONTH, now=at(now), store_now=None if store_now is None else at(store_now)
    )
    assert plan.goes == () or not plan.frozen
    return "; ".join(plan.frozen)


DAYS = daily("2026-10-01T02:00:00+00:00", 50)  # to 19 November


@pytest.mark.parametrize(
    ("taken", "now", "store_now", "says"),
    [
        (DAYS, "2026-11-19T03:00Z", "2026-11-19T03:00Z", ""),
        (DAYS, "2026-11-21T03:00Z", None, ""),
        (DAYS, "2026-11-23T03:00Z", None, "backups have stopped, or the clock has jumped"),
        (DAYS, "2027-11-19T03:00Z", None, "backups have stopped, or the clock has jumped"),
        (DAYS, "2027-11-19T03:00Z", "2026-11-19T03:00Z", "this machine's clock says"),
        (DAYS, "2026-11-19T00:00Z", None, "backups are from the future"),
        ([*DAYS, backup("2026-11-20T02:00Z", 400)], "2026-11-20T03:00Z", None, "were usual"),
        ([*DAYS, backup("2026-11-20T02:00Z", 500)], "2026-11-20T03:00Z", None, ""),
        (
            [*DAYS, backup("2026-11-20T02:00Z", stored=at("2026-11-19T20:00Z"))],
            "2026-11-20T03:00Z",
            None,
            "was stored 2026-11-19T20:00:00Z",
        ),
        # A copy is stored later, and that is no contradiction.
        ([backup(each.time, stored=at("2026-11-19T02:30Z")) for each in DAYS], "2026-11-19T03:00Z",
         None, ""),
    ],
)  # fmt: skip
def test_what_freezes_deletion(
    taken: list[Backup], now: str, store_now: str | None, says: str
) -> None:
    found = frozen(taken, now, store_now)
    assert says in found and bool(says) == bool(found), found


def test_a_frozen_plan_says_what_would_go() -> None:
    plan = plan_retention(DAYS, MONTH, now=at("2026-11-26T03:00Z"))
    assert plan.goes == () and plan.frozen
    assert plan.rows[0].reasons == (
        "nothing is deleted now; otherwise it would go: its 30d ended 2026-10-31T02:00:00Z",
    )


def test_a_clock_that_is_ahead_makes_nothing_older() -> None:
    plan = plan_retention(
        DAYS, MONTH, now=at("2026-11-19T03:30Z"), store_now=at("2026-11-19T02:45Z")
    )
    assert plan.rows[20].stays and not plan.rows[19].stays


def test_the_store_makes_a_backup_younger_never_older() -> None:
    """A writer whose clock was a year behind: its backup is as old as the store says."""
    behind = [*DAYS[-5:], backup("2025-11-19T02:00Z", stored=at("2026-11-19T02:30Z"))]
    plan = plan_retention(behind, MONTH, now=at("2026-11-19T03:00Z"))
    assert plan.goes == ()


# -- properties --------------------------------------------------------------------------------

moments = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 1)).map(
    lambda each: each.replace(tzinfo=UTC)
)
backups = st.lists(
    st.builds(
        lambda time, size, good, verified, base: Backup(
            f"{time.timestamp():.0f}-{size}", time, size, None, good, verified, base
        ),
        moments,
        st.integers(500, 1000),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
    unique_by=lambda each: each.id,
)
policies = st.builds(
    Policy,
    keep=st.none() | st.integers(1, 200).map(lambda days: Duration(seconds=days * 86400)),
    last=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 5),
    monthly=st.integers(0, 5),
    pitr=st.none() | st.integers(1, 60).map(lambda days: Duration(seconds=days * 86400)),
    minimum=st.integers(0, 4),
)


@given(backups, policies)
def test_whatever_the_policy(taken: list[Backup], policy: Policy) -> None:
    now = at("2026-12-01T00:00Z")
    plan = plan_retention(taken, policy, now=now)
    assert sorted(row.backup.id for row in plan.rows) == sorted(each.id for each in taken)
    assert all(row.reasons for row in plan.rows)
    here = [row.backup for row in plan.rows if row.stays]
    good = [each for each in taken if each.good]
    least = max(1, policy.minimum)
    assert sum(each.good for each in here) >= min(least, len(good))
    assert sum(each.good and each.verified for each in here) >= min(
        least, sum(each.verified for each in good)
    )
    if good:
        newest = max(good, key=lambda each: (each.born, each.id))
        assert newest in here or any(each.verified for each in here)
    # What stays alone stays: a second look after the deletion deletes nothing more.
    if not plan.frozen:
        again = plan_retention(here, policy, now=now)
        assert again.goes == () or again.frozen


@given(backups, policies, st.integers(0, 29))
def test_a_hold_keeps_whatever_the_policy(taken: list[Backup], policy: Policy, which: int) -> None:
    if not taken:
        return
    held = taken[which % len(taken)]
    plan = plan_retention(taken, policy, now=at("2026-12-01T00:00Z"), holds=[Hold(held.id, None)])
    assert held.id in stays(plan)


# -- damage ------------------------------------------------------------------------------------


def test_damaged_backups_take_only_the_places_that_no_good_one_can_fill() -> None:
    taken = daily("2026-11-01T02:00:00+00:00", 5)
    now = taken[-1].time
    hurt = [backup(each.time, good=number in (0, 2)) for number, each in enumerate(taken)]
    assert stays(plan_retention(hurt, Policy(last=2), now=now)) == [taken[0].id, taken[2].id]
    assert stays(plan_retention(hurt, Policy(last=3), now=now)) == [
        taken[0].id,
        taken[2].id,
        taken[4].id,
    ]
    plan = plan_retention(hurt, Policy(last=2), now=now)
    assert plan.rows[4].reasons == ("it is damaged, and no rule needs it",)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(last=3),
        Policy(daily=4),
        Policy(weekly=1, minimum=2),
        Policy(pitr=parse_duration("2d")),
    ],
)
def test_a_finding_against_everything_takes_nothing_more(policy: Policy) -> None:
    """A check that is wrong about all of them must not cost a backup that would have stayed."""
    taken = daily("2026-11-01T02:00:00+00:00", 9, base=True)
    hurt = [backup(each.time, good=False, base=True) for each in taken]
    now = taken[-1].time
    assert stays(plan_retention(hurt, policy, now=now)) == stays(
        plan_retention(taken, policy, now=now)
    )
