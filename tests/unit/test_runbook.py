"""The runbook as a value: what may come next, and what is never allowed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.durations import parse_duration
from strongroom.rules.promises import measure
from strongroom.rules.runbook import (
    Book,
    Step,
    beside_name,
    cloud_book,
    database_book,
    vault_book,
)

SERVICES = {"stop": ["systemctl stop a"], "start": ["systemctl start a"]}
NOW = datetime(2026, 11, 25, 22, 0, tzinfo=UTC)


def database(**more: object) -> Book:
    given: dict[str, object] = {
        "name": "shop", "beside": "shop__restoring", "old": "shop__before", **SERVICES,
        "migrate": ["alembic upgrade head"], **more,
    }  # fmt: skip
    return database_book(**given)  # type: ignore[arg-type]


def vault(**more: object) -> Book:
    given = {"path": "/v", "staging": "/v.restoring", "old": "/v.before", **SERVICES, **more}
    return vault_book(**given)  # type: ignore[arg-type]


def keys(book: Book) -> list[str]:
    return [step.key for step in book.steps]


def run_until(book: Book, key: str | None) -> Book:
    """Carry out everything before `key`."""
    while (step := book.next) is not None and step.key != key:
        book = book.begin(step.key).end(step.key, seconds=1.0)
    return book


def test_the_seeds_steps_are_all_there_in_its_order() -> None:
    assert keys(database()) == [
        "stop", "verify", "safety", "create", "restore", "migrate", "integrity", "swap", "start",
        "measure",
    ]  # fmt: skip
    assert keys(vault()) == [
        "verify", "restore", "stop", "swap", "rebuild_index", "integrity", "start", "measure",
    ]  # fmt: skip
    assert "swap" not in keys(database(drop_first=True))
    assert keys(cloud_book(remote="rclone:x:")) == [
        "verify", "stop", "safety", "upload", "rebuild_index", "integrity", "start", "measure",
    ]  # fmt: skip


def test_what_is_not_configured_is_skipped_with_the_reason() -> None:
    book = database(stop=(), migrate=())
    assert (book["stop"].state, book["migrate"].state) == ("skipped", "skipped")
    assert "no `migrate` is configured" in book["migrate"].told
    assert vault()["rebuild_index"].state == "skipped"
    assert database(safety=False)["safety"].state == "skipped"


def test_names_are_quoted_in_what_is_shown() -> None:
    book = database(name='a"b')
    assert book["swap"].commands[0] == 'ALTER DATABASE "a""b" RENAME TO "shop__before"'


@pytest.mark.parametrize(
    ("book", "key", "condition"),
    [
        (database(), "stop", "untouched"),
        (database(), "swap", "untouched"),
        (database(), "start", "whole"),
        (database(), None, "whole"),
        (database(drop_first=True), "create", "untouched"),
        (database(drop_first=True), "restore", "between"),
        (database(drop_first=True), "integrity", "between"),
        (database(drop_first=True), "start", "whole"),
        (vault(), "swap", "untouched"),
        (vault(), "integrity", "between"),
        (vault(), "start", "whole"),
    ],
)
def test_the_condition_before_a_step(book: Book, key: str | None, condition: str) -> None:
    assert run_until(book, key).condition == condition


def test_a_turn_that_was_begun_is_no_more_untouched() -> None:
    book = run_until(database(), "swap").begin("swap")
    assert book.condition == "between"
    assert book.fail("swap", seconds=1, told="x").resumed().condition == "between"


def test_services_are_stopped_again_only_while_nothing_was_changed() -> None:
    book = run_until(database(), "migrate").begin("migrate").fail("migrate", seconds=1, told="x")
    again = book.resumed()
    assert again.next is not None
    assert again.next.key == "stop"
    assert again["restore"].state == "done"
    swapped = run_until(database(), "start").begin("start").fail("start", seconds=1, told="x")
    assert swapped.resumed()["stop"].state == "done"


def test_what_is_replaced_in_place_is_saved_again_only_while_nothing_was_changed() -> None:
    for book, turn in (
        (cloud_book(remote="rclone:x:", **SERVICES), "upload"),
        (database(drop_first=True), "create"),
    ):
        assert keys(book).index("safety") < keys(book).index(turn)
        early = run_until(book, turn)
        assert early["safety"].state == "done"
        assert early.resumed()["safety"].state == "pending"
        begun = early.begin(turn).fail(turn, seconds=1, told="x").resumed()
        assert (begun.condition, begun["safety"].state) == ("between", "done")
        assert begun["stop"].state == "done"
    skipped = database(drop_first=True, safety=False)
    assert run_until(skipped, "create").resumed()["safety"].state == "skipped"


def test_a_restore_that_is_gone_is_undone_up_to_the_turn() -> None:
    book = run_until(database(), "swap").undone("create")
    assert [s.key for s in book.steps if s.state == "pending"] == [
        "create", "restore", "migrate", "integrity", "swap", "start", "measure",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="was changed"):
        run_until(database(), "start").undone("create")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda book: book.begin("verify"),
        lambda book: book.begin("stop").begin("stop"),
        lambda book: book.end("stop", seconds=1),
        lambda book: book.fail("stop", seconds=1, told=""),
        lambda book: book.begin("stop").skip("stop", "x"),
        lambda book: run_until(book, "verify").skip("stop", "x"),
        lambda book: book.begin("start"),
    ],
)
def test_what_may_not_be(wrong: object) -> None:
    with pytest.raises(ValueError):
        wrong(database())  # type: ignore[operator]


def test_a_book_that_would_start_services_too_early_is_none() -> None:
    steps = tuple(Step(key, key) for key in ("swap", "start", "integrity"))
    with pytest.raises(ValueError, match="half-restored"):
        Book(steps, "swap", "integrity")
    with pytest.raises(ValueError, match="before it is changed"):
        Book(steps, "integrity", "swap")
    with pytest.raises(ValueError, match="same key"):
        Book((*steps, steps[0]), "swap", "swap")


BOOKS = st.one_of(
    st.builds(
        database,
        stop=st.sampled_from([(), ("a",)]),
        migrate=st.sampled_from([(), ("a",)]),
        safety=st.booleans(),
        drop_first=st.booleans(),
    ),
    st.builds(vault, rebuild_index=st.sampled_from([(), ("a",)])),
)


@given(BOOKS, st.lists(st.sampled_from(["end", "fail", "die"]), max_size=60))
def test_whatever_happens_services_start_onto_something_whole(book: Book, fate: list[str]) -> None:
    """Any sequence of ends, failures and deaths, each taken up again; then a way to the end."""
    for what in [*fate, *(["end"] * len(book.steps) * 2)]:
        step = book.next
        if step is None:
            break
        if step.key == "start":
            assert book.condition == "whole"
        before = book
        book = book.begin(step.key)
        assert all(s.over for s in book.steps[: keys(book).index(step.key)])
        assert Book.from_body(book.body()) == book
        if what == "end":
            book = book.end(step.key, seconds=1.0, told="fine")
        else:
            if what == "fail":
                book = book.fail(step.key, seconds=1.0, told="broken")
            book = book.resumed()
            assert before.condition != "whole" or book.condition == "whole"
    assert book.next is None
    assert book.condition == "whole"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=70))
def test_a_name_beside_fits(name: str) -> None:
    made = beside_name(name, "__before_20261125_220000")
    assert len(made.encode()) <= 63
    assert made.endswith("__before_20261125_220000")
    assert made.encode().decode() == made


@pytest.mark.parametrize(
    ("promise", "seconds", "missed"),
    [(None, 9e9, False), ("4h", 14400, False), ("4h", 14401, True), ("1s", 0.5, False)],
)
def test_the_time_against_the_promise(promise: str | None, seconds: float, missed: bool) -> None:
    rto = None if promise is None else parse_duration(promise)
    measured = measure(NOW, rto, now=NOW + timedelta(seconds=seconds))
    assert (measured.missed, measured.seconds) == (missed, seconds)


@pytest.mark.parametrize(
    "body", [{}, {"steps": []}, {"turn": 1, "whole": 2, "again": [], "steps": [{}]}]
)
def test_a_journal_that_is_none_is_refused(body: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Book.from_body(body)
