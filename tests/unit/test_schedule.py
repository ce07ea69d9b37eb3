"""Verdicts of the schedule: due, missed, made up for, running too long; and a year of nights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cli.app import VERBS as EVERY_VERB
from strongroom.rules import schedule
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Held, Job, State, Verdict, check_argv, decide, plan, worst

BORN = datetime(2026, 1, 1, tzinfo=UTC)
NIGHT = Job("backup.db", (("backup", "db"),), Cron.parse("0 2 * * *"), UTC, "backup", "db")
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Run:
    started: datetime
    outcome: str = "done"


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=UTC)


def judge(
    now: str, *, runs: Sequence[Run] = (), held: Sequence[Held] = (), job: Job = NIGHT
) -> Verdict:
    return decide(job, now=at(now), began=BORN, runs=runs, held=held)


def test_it_is_due_at_its_time_and_served_by_its_run() -> None:
    before = [Run(at("09T02:00:07"))]
    early = judge("10T01:59:59", runs=before)
    assert (early.state, early.next) == (State.WAITING, at("10T02:00"))
    verdict = judge("10T02:00:01", runs=before)
    assert (verdict.state, verdict.due, verdict.number) == (State.DUE, at("10T02:00"), 1)
    assert (verdict.trigger, verdict.missed) == ("schedule", ())
    served = judge("10T03:00", runs=[*before, Run(at("10T02:00:01"))])
    assert (served.state, served.next) == (State.WAITING, at("11T02:00"))
    assert served.reasons == ("served by the run of 2026-03-10T02:00:01Z",)


def test_a_run_by_hand_serves_the_times_before_it() -> None:
    assert judge("10T12:00", runs=[Run(at("10T11:00"))]).state is State.WAITING
    assert judge("11T02:00", runs=[Run(at("10T11:00"))]).state is State.DUE
    assert judge("10T02:30", runs=[Run(at("10T01:59"))]).state is State.DUE


@pytest.mark.parametrize("outcome", ["failed", "refused", "interrupted", "missed"])
def test_a_run_that_left_nothing_serves_nothing(outcome: str) -> None:
    runs = [Run(at("09T02:00:07")), Run(at("10T02:10"), outcome)]
    assert judge("10T02:30", runs=runs).state is State.DUE


def test_what_was_missed_is_made_up_for_once_or_not_at_all() -> None:
    runs = [Run(at("05T02:00:07"))]
    verdict = judge("10T09:00", runs=runs)
    assert (verdict.state, verdict.trigger, verdict.due) == (
        State.CATCH_UP,
        "catch-up",
        at("10T02:00"),
    )
    assert verdict.missed == tuple(at(f"{day:02}T02:00") for day in (9, 8, 7, 6))
    assert "4 earlier times passed too, the first 2026-03-06T02:00:00Z" in verdict.reasons
    none = judge("10T09:00", runs=runs, job=replace(NIGHT, catch_up="none"))
    assert (none.state, none.runs, len(none.missed)) == (State.MISSED, False, 5)
    # A little late is on time, whatever is said.
    assert judge("10T02:59", runs=runs, job=replace(NIGHT, catch_up="none")).state is State.DUE


def test_nothing_was_due_before_the_repository_was_made() -> None:
    born = at("10T10:00")
    fresh = decide(NIGHT, now=at("10T11:00"), began=born, runs=(), held=())
    assert (fresh.state, fresh.next) == (State.WAITING, at("11T02:00"))
    assert decide(NIGHT, now=at("11T02:00"), began=born, runs=(), held=()).missed == ()


def test_what_runs_is_not_run_again_and_too_long_is_said() -> None:
    held = [Held(at("10T02:00"), host="one", alive=True)]
    verdict = judge("10T09:00", held=held)
    assert (verdict.state, verdict.runs) == (State.RUNNING, False)
    verdict = judge("11T02:00:05", held=held)
    assert (verdict.state, verdict.runs) == (State.OVERRUN, False)
    assert "longer than its period" in verdict.reasons[1]
    # When it has ended, the time that waited comes.
    ended = [replace(held[0], alive=False, outcome="done")]
    assert judge("11T02:30", held=ended).state is State.DUE
    assert judge("11T09:00", held=ended).state is State.CATCH_UP


def test_who_died_or_was_stopped_is_followed_by_the_next_number_thrice() -> None:
    dead = Held(at("10T02:00"), host="one")
    verdict = judge("10T02:30", held=[dead])
    assert (verdict.state, verdict.number) == (State.CATCH_UP, 2)
    assert "try 1 on one gave no sign of life for too long" in verdict.reasons
    stopped = replace(dead, number=2, tries=2, outcome="interrupted", exit=143)
    assert judge("10T02:30", held=[stopped]).number == 3
    verdict = judge("10T02:30", held=[replace(dead, number=3, tries=3)])
    assert (verdict.state, verdict.reasons[0][-13:]) == (State.WAITING, "after 3 tries")


def test_what_reached_nothing_is_tried_again_after_a_while() -> None:
    held = Held(at("10T02:00"), outcome="failed", exit=7, ended=at("10T02:03"))
    verdict = judge("10T02:05", held=[held])
    assert (verdict.state, verdict.reasons[-1]) == (
        State.WAITING,
        "tried again from 2026-03-10T02:13:00Z on",
    )
    assert judge("10T02:13", held=[held]).state is State.CATCH_UP
    assert judge("10T02:13", held=[replace(held, exit=9)]).state is State.WAITING
    assert judge("10T02:13", held=[replace(held, number=3, tries=3)]).state is State.WAITING


def test_a_lease_that_came_too_early_is_no_try() -> None:
    early = Held(at("10T02:00"), number=5, tries=0, host="one", outcome="early", exit=4)
    verdict = judge("10T02:00", held=[early])
    assert (verdict.runs, verdict.number) == (True, 6)
    assert judge("09T02:00", held=[early]).due == at("09T02:00")


def test_a_clock_that_went_back_runs_nothing_twice() -> None:
    runs = [Run(at("10T02:00:01"))]
    assert judge("10T01:30", runs=runs).runs is True  # the run is of the future: it is not believed
    held = [Held(at("10T02:00"), outcome="done"), Held(at("09T02:00"), outcome="done")]
    assert judge("10T01:30", held=held).runs is False
    assert judge("10T02:10", held=held).runs is False


def test_never_two_of_one_source() -> None:
    drill = Job("drill.db", (("check",),), Cron.parse("0 3 * * *"), UTC, source="db")
    other = replace(NIGHT, name="backup.vault", source="vault")
    held = {"backup.db": [Held(at("10T02:00"), alive=True)]}
    verdicts = plan([drill, NIGHT, other], now=at("10T03:30"), began=BORN, runs={}, held=held)
    assert [(one.job.name, one.state) for one in verdicts] == [
        ("backup.vault", State.CATCH_UP),
        ("backup.db", State.RUNNING),
        ("drill.db", State.WAITING),
    ]
    assert verdicts[2].reasons == ("backup.db works on db: never two of one source at once",)


@settings(max_examples=40, deadline=None)
@given(
    zone=st.sampled_from(["UTC", "Europe/Madrid", "Australia/Lord_Howe", "Africa/Casablanca"]),
    text=st.sampled_from(["0 2 * * *", "30 2 * * *", "0 */6 * * *", "30 1 * * mon", "0 3 1 * *"]),
    naps=st.lists(st.integers(1, 3000), min_size=5, max_size=60),
    long=st.integers(0, 600),
)
def test_whoever_looks_now_and_then_serves_each_time_once(
    zone: str, text: str, naps: list[int], long: int
) -> None:
    """Looks after naps of so many minutes; a run takes `long` minutes, in which nobody looks."""
    job = replace(NIGHT, cron=Cron.parse(text), zone=ZoneInfo(zone))
    now, runs, served = datetime(2026, 3, 27, tzinfo=UTC), list[Run](), list[datetime]()
    first = now
    for nap in naps:
        now += timedelta(minutes=nap)
        verdict = decide(job, now=now, began=first, runs=runs, held=())
        if verdict.runs:
            served += [verdict.due, *verdict.missed]
            runs.append(Run(now))
            now += timedelta(minutes=long)
    assert len(served) == len(set(served))
    until = runs[-1].started if runs else first
    assert sorted(served) == list(job.cron.between(first, until, job.zone))


def test_the_worst_of_several_statuses() -> None:
    assert worst([]) == 0
    assert worst([0, 10, 0]) == 10
    assert worst([10, 3, 7]) == 7
    assert worst([9, 143, 0]) == 143


def test_what_may_run_by_itself_are_verbs() -> None:
    assert set(schedule.VERBS) <= set(EVERY_VERB)
    check_argv(["repository", "stats"])
    for argv in (["backup", "db"], ["run-due"], ["repository"], ["prune", "a\0b"], []):
        with pytest.raises(ValueError, match=r"by itself|zero byte"):
            check_argv(argv)
