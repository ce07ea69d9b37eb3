"""Where a receiver goes on: what is here against what a server says of its history."""

from __future__ import annotations

import pytest

from strongroom.format.wal import Fork
from strongroom.postgres.wal.resuming import (
    History,
    Place,
    first_missing,
    go_on,
    newest,
    overtaken,
)
from strongroom.postgres.wal.slots import Slot, awaited, slot_name

SIZE = 100
WAY = History(3, (Fork(1, 450, ""), Fork(2, 700, "")))


@pytest.mark.parametrize(
    ("here", "begin"),
    [
        (Place(1, 310), Place(1, 300)),
        (Place(1, 449), Place(1, 400)),
        (Place(1, 450), Place(2, 400)),  # all of timeline 1 is here
        (Place(1, 620), Place(2, 400)),  # more than that: another history, from the fork anew
        (Place(2, 700), Place(3, 700)),
        (Place(1, 990), Place(2, 400)),
        (Place(3, 820), Place(3, 800)),
    ],
)
def test_trap_36_a_newer_timeline_is_taken_from_the_segment_of_its_fork(
    here: Place, begin: Place
) -> None:
    assert go_on(here, WAY, SIZE) == begin


def test_the_way_of_a_server() -> None:
    assert [WAY.at(position) for position in (0, 449, 450, 699, 700, 999)] == [1, 1, 2, 2, 3, 3]
    assert WAY.stretches(400, 750) == [(1, 400, 450), (2, 450, 700), (3, 700, 750)]
    assert WAY.stretches(460, 500) == [(2, 460, 500)]
    assert newest({1: 300, 2: 650, 7: 900}, WAY) == Place(2, 650)
    assert newest({7: 900}, WAY) is None


def test_trap_37_what_is_missing_before_a_slot_is_wanted_first() -> None:
    alone = History(1)

    def begin(*numbers: int, restart: int, gaps: tuple[tuple[int, int], ...] = ()) -> int:
        return first_missing({(1, one) for one in numbers}, gaps, alone, SIZE, restart)

    assert begin(restart=550) == 500
    assert begin(3, 4, restart=550) == 500
    assert begin(3, 4, 5, 6, restart=550) == 700
    assert begin(2, 3, restart=550) == 400  # 4 is missing
    assert begin(2, 3, 8, 9, restart=550) == 400  # a backup stored 8 and 9: they end no hole
    assert begin(4, 8, 9, restart=550) == 500
    assert begin(2, 3, restart=550, gaps=((400, 500),)) == 500  # on record: it is nowhere
    # The segment of a fork is read from the newer timeline.
    assert first_missing({(1, 3), (2, 4), (2, 5), (2, 6)}, (), WAY, SIZE, 480) == 700
    assert first_missing({(1, 3), (1, 4)}, (), WAY, SIZE, 480) == 400


def test_trap_39_a_server_that_was_overtaken() -> None:
    histories = {1: None, 2: (Fork(1, 450, ""),)}
    assert overtaken(histories, History(1), 449) is None  # it is on its way there
    assert overtaken(histories, History(1), 450) is None
    assert overtaken(histories, History(1), 451) == (2, 450)
    assert overtaken(histories, History(2, (Fork(1, 450, ""),)), 999) is None
    # A sibling: both left timeline 1, the newer one somewhere else.
    other = {3: (Fork(1, 600, ""),)}
    assert overtaken(other, History(2, (Fork(1, 450, ""),)), 500) == (3, 450)
    assert overtaken({2: None}, History(1), 999) is None  # nothing is known of it


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", False),
        ("strongroom_db", True),
        ("a, STRONGROOM_DB", True),
        ("2 (a, strongroom_db)", True),
        ("FIRST 1 (a, b)", False),
        ('ANY 1 ("strongroom_db", b)', True),
        ("*", True),
        ("first", False),
        ("strongroom_db2", False),
    ],
)
def test_whether_commits_wait_for_a_receiver(names: str, expected: bool) -> None:
    assert awaited(names, "strongroom_db") is expected


def test_slots() -> None:
    assert slot_name("Shop-DB") == "strongroom_shop_db"
    assert len(slot_name("x" * 99)) == 63
    idle = Slot("s", active=False, restart=1, status="extended", held=17 << 24)
    assert "fills the server's disk" in str(idle.trouble)
    assert Slot("s", active=True, restart=1, status="extended", held=17 << 24).trouble is None
    assert Slot("s", active=False, restart=1, status="reserved", held=1 << 24).trouble is None
    assert "about to be lost" in str(Slot("s", False, 1, "unreserved").trouble)
