"""operations/standing.py: what it finds, and that it opens only what it has not seen before."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rooms import BIRTH, Clock, expire, new_room, open_room, take, writer_keys
from strongroom.config.model import Configuration, FilesTable, Promise
from strongroom.format.run import Run
from strongroom.observe.journal import Journal
from strongroom.operations.measuring import figures
from strongroom.operations.standing import RECORDS, Survey, survey
from strongroom.repository.audit import AuditLog
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.repository import Repository
from strongroom.rules.durations import parse_duration
from strongroom.rules.standing import Standing
from strongroom.storage.memory import MemoryStorage
from strongroom.storage.metered import MeteredStorage

NOW = BIRTH + timedelta(days=1)
PROMISE = Promise(rpo=parse_duration("48h"), rto=parse_duration("1h"))
CONFIGURED = Configuration(source={"vault": FilesTable(path="/v", promise=PROMISE)})
DAILY = Configuration(source={"vault": FilesTable(path="/v", schedule="0 2 * * *")})


class Place:
    """A repository in a metered memory, and a machine that looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "state")
        self.inner = MemoryStorage()
        self.storage = MeteredStorage(self.inner)
        new_room(self.inner)
        self.clock = Clock()

    def open(self, **how: Any) -> Repository:
        return open_room(self.storage, os.urandom(4), clock=self.clock, **how)

    def tell(self, type: str, **how: Any) -> None:
        moment = self.clock.now()
        facts = {"started": moment, "ended": moment + timedelta(seconds=30)} | how
        AuditLog(self.open()).append(Run(type, os.urandom(8).hex(), **facts))

    def look(
        self, configured: Configuration = CONFIGURED, folder: str | None = "", **how: Any
    ) -> Survey:
        repository = self.open(**how)
        journal = Journal(self.folder, AuditLog(repository))
        folder = self.folder if folder == "" else folder
        try:
            return survey(repository, journal, configured, now=NOW, folder=folder)
        finally:
            journal.close()

    def stand(self, name: str = "vault") -> Standing:
        (found,) = (one for one in self.look().standings if one.name == name)
        return found

    def gets(self) -> int:
        before = self.storage.totals()["get"]
        self.look()
        return (self.storage.totals()["get"] - before).operations


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_source_from_its_first_day_on(place: Place) -> None:
    found = place.stand()
    assert (found.word, found.missed, found.kind) == ("none", True, "")
    first = take(place.open(), "vault", {b"a": b"1"}).snapshot
    found = place.stand()
    assert (found.word, found.kind, found.backups) == ("unproved", "files", 1)
    assert found.first == found.until == first.time
    place.tell("check", detail={"level": 3, "packs_left": 0, "whole": [first.id]})
    found = place.stand()
    assert (found.word, found.reasons) == ("ok", ())
    assert found.proved is not None
    assert found.proved.by == "check"
    assert found.took is None
    place.tell("restore", source="vault", detail={"whole": False})
    place.tell("restore", source="vault", outcome="failed", detail={"whole": True})
    place.tell("restore", source="other", detail={"whole": True})
    assert place.stand().took is None
    place.tell("restore", source="vault", detail={"whole": True})
    took = place.stand().took
    assert took is not None
    assert (took.seconds, took.by) == (30.0, "restore")
    place.tell("drill", source="vault", detail=green(2500))
    took = place.stand().took
    assert took is not None
    assert (took.seconds, took.by) == (2.5, "drill")


def green(ms: int, verdict: str = "green") -> dict[str, Any]:
    step = {"name": "restore", "verdict": verdict, "ms": ms, "what": ""}
    at = (BIRTH + timedelta(hours=1)).isoformat()
    return {"at": at, "kind": "files", "restore_ms": ms, "total_ms": ms, "steps": [step]}


@pytest.mark.parametrize(
    "detail",
    [
        {"level": 1, "packs_left": 0},
        {"level": 3, "packs_left": 7},
        {"level": 3},
        {},
    ],
)
def test_a_check_that_did_not_read_everything_proves_nothing(
    place: Place, detail: dict[str, Any]
) -> None:
    take(place.open(), "vault", {b"a": b"1"})
    place.tell("check", detail=detail)
    assert place.stand().proved is None


def test_a_check_before_the_first_backup_proves_nothing_of_it(place: Place) -> None:
    place.tell("check", detail={"level": 3, "packs_left": 0})
    take(place.open(), "vault", {b"a": b"1"})
    assert place.stand().proved is None


def test_a_red_drill_takes_the_green_away(place: Place) -> None:
    take(place.open(), "vault", {b"a": b"1"})
    place.tell("drill", source="vault", detail=green(2500))
    assert place.stand().word == "ok"
    red = green(1, "red")
    place.tell("drill", source="vault", outcome="failed", what="no server", detail=red)
    found = place.stand()
    assert (found.word, found.missed) == ("missed", True)
    assert "no server" in found.reasons[0]
    place.tell("drill", source="vault", detail=green(2600))
    assert place.stand().word == "ok"


def test_a_damaged_backup_is_not_recoverable_until_all_was_found_whole(place: Place) -> None:
    first, second = (take(place.open(), "vault", {b"a": text}).snapshot for text in (b"1", b"2"))
    bad = {"level": 3, "packs_left": 0, "damaged_snapshots": [second.id]}
    place.tell("check", outcome="failed", detail=bad)
    found = place.stand()
    assert (found.until, found.backups) == (first.time, 2)
    assert second.id[:12] in found.unusable[0]
    assert found.word == "unproved"
    assert "1 of its backups are damaged" in found.reasons[0]
    place.tell("check", detail={"level": 1, "packs_left": 0, "damaged_snapshots": []})
    assert place.stand().until == first.time, "a look at the structure mends nothing"
    whole = {"level": 3, "packs_left": 0, "whole": [first.id, second.id]}
    place.tell("check", detail=whole | {"damaged_snapshots": []})
    assert place.stand().until == second.time


def test_expired_backups_are_none_and_sources_that_are_not_configured_are_shown(
    place: Place,
) -> None:
    first = take(place.open(), "vault", {b"a": b"1"}).snapshot
    second = take(place.open(), "vault", {b"a": b"2"}).snapshot
    take(place.open(), "gone", {b"a": b"3"})
    assert place.stand().first == first.time
    expire(place.open(), first)
    found = place.stand()
    assert (found.first, found.backups) == (second.time, 1)
    assert place.stand("gone").word == "unproved"  # nothing is promised, nothing missed


def test_what_is_due_follows_from_the_newest(place: Place) -> None:
    take(place.open(), "vault", {b"a": b"1"})  # on 1 July, 10:00
    (found,) = place.look(DAILY).standings
    assert found.due == (BIRTH + timedelta(days=1)).replace(hour=2)
    assert (found.word, found.overdue) == ("overdue", True)
    assert found.reasons[0] == "a backup was due 2026-07-02 02:00Z and did not run"


def test_only_what_is_new_is_opened(place: Place) -> None:
    def back_up(number: int) -> Snapshot:
        made = take(place.open(), "vault", {b"a": bytes([number])}).snapshot
        place.tell("backup", source="vault", snapshot=made.id, size=made.size)
        return made

    for number in range(12):
        back_up(number)
    place.look()
    fixed = place.gets()  # strongroom.json, the head of the log
    last = back_up(12)
    assert place.gets() <= fixed + 2, "a record and a leaf"
    assert place.gets() == fixed < 6
    assert place.stand().until == last.time


def test_what_was_deleted_is_gone_whatever_was_seen(place: Place) -> None:
    first, second = (take(place.open(), "vault", {b"a": text}).snapshot for text in (b"1", b"2"))
    assert place.stand().backups == 2
    place.inner.delete([second.name])
    assert place.stand().until == first.time
    assert second.name not in (Path(place.folder) / RECORDS).read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1]",
        lambda text: json.dumps({**json.loads(text), "version": 99}),
        lambda text: json.dumps({**json.loads(text), "repository": "0" * 32}),
        lambda text: json.dumps({**json.loads(text), "records": {"x": 1}}),
        lambda text: json.dumps(
            {
                **json.loads(text),
                "records": {name: {"id": 1} for name in json.loads(text)["records"]},
            }
        ),
    ],
    ids=["empty", "half", "other", "version", "repository", "records", "fields"],
)
def test_a_spoilt_memory_costs_time_only(place: Place, spoil: Any) -> None:
    snapshot = take(place.open(), "vault", {b"a": b"1"}).snapshot
    before = place.stand()
    path = Path(place.folder) / RECORDS
    path.write_text(spoil(path.read_text()))
    assert place.stand() == before
    assert json.loads(path.read_text())["records"][snapshot.name]["id"] == snapshot.id


def test_without_a_folder_all_is_read(place: Place) -> None:
    take(place.open(), "vault", {b"a": b"1"})
    assert place.look(folder=None).standings == place.look().standings
    assert not (Path(place.folder) / "nowhere").exists()


def test_a_record_that_does_not_open_is_said_each_time(place: Place) -> None:
    take(place.open(), "vault", {b"a": b"1"})
    bad = take(place.open(), "vault", {b"a": b"2"}).snapshot
    data = bytearray(place.inner.get(bad.name))
    data[-1] ^= 1
    place.inner.delete([bad.name])
    place.inner.put(bad.name, bytes(data))
    for _ in range(2):
        assert [one.name for one in place.look().damaged] == [bad.name]


def test_who_cannot_read_backups_sees_where_they_stand(place: Place) -> None:
    take(place.open(), "vault", {b"a": b"1"})
    place.tell("check", detail={"level": 3, "packs_left": 0})
    (found,) = place.look(keyset=writer_keys()).standings
    assert found == place.stand()


def test_a_configuration_without_sources(place: Place) -> None:
    assert place.look(Configuration()).standings == []


def test_deliveries_are_counted_by_channel(place: Place) -> None:
    for channels in ({"mail": "", "pager": "no route"}, {"mail": ""}, {"mail": "full"}, None):
        place.tell("alert", detail={} if channels is None else {"channels": channels})
    repository = place.open()
    journal = Journal(place.folder, AuditLog(repository))
    found = figures(repository, journal, CONFIGURED, now=NOW, folder=place.folder)
    assert found.deliveries == {
        ("mail", "taken"): 2, ("mail", "failed"): 1, ("pager", "failed"): 1
    }  # fmt: skip
    assert found.size == sum(entry.size for entry in place.inner.list(""))
    take(place.open(), "vault", {b"a": b"1"})
    same = figures(repository, journal, CONFIGURED, now=NOW, folder=place.folder, fresh=False)
    assert same.size == found.size, "nothing is added up when nothing has run"
    journal.close()
