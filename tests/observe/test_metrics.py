"""What Prometheus is told: read back by a parser that is not ours, served and written as promised."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from strongroom.errors import Busy, UsageError
from strongroom.observe.metrics import (
    METRICS,
    PREFIX,
    Board,
    Endpoint,
    Figures,
    LastBackup,
    labelled,
    rows,
)
from strongroom.rules.anomalies import Condition, Key, Log, Past, SourceState, State
from strongroom.rules.durations import parse_duration
from strongroom.rules.standing import Known, Proof, Took, stand

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
KNOWN = Known(
    'd"b\\\n',  # whatever a source of another machine is called
    "physical",
    backups=2,
    moments=[NOW - 9 * HOUR, NOW - HOUR],
    proofs=[Proof(NOW - 5 * HOUR, "drill")],
    took=Took(12.5, "drill", NOW - 5 * HOUR),
    rpo=parse_duration("24h"),
    rto=parse_duration("4h"),
    drill_every=parse_duration("30d"),
    due=NOW + HOUR,
)
STATE = State(
    [
        SourceState(
            KNOWN.name,
            backups=(Past(NOW - 2 * HOUR, NOW - HOUR, "done", 1000),),
            log=Log(NOW - timedelta(minutes=7)),
        )
    ],
    free=19,
    total=100,
    keys=(Key("passphrase", NOW - 100 * HOUR), Key("passphrase", NOW - HOUR)),
    key_age=parse_duration("365d"),
)
FIGURES = Figures(
    NOW,
    "1.2",
    [stand(KNOWN, now=NOW)],
    STATE,
    [
        Condition("size", KNOWN.name, "warning", ""),
        Condition("wal-gap", KNOWN.name, "critical", ""),
        Condition("space", "", "critical", ""),
    ],
    {KNOWN.name: LastBackup(1000, 10, 5)},
    12345,
    {("mail", "taken"): 3, ("mail", "failed"): 1},
)


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
def board() -> Board:
    board = Board()
    board.show(FIGURES)
    return board


def test_everything_that_is_known_is_told(board: Board) -> None:
    found = read(board.text())
    source = ("source", KNOWN.name)

    def value(name: str, *labels: tuple[str, str]) -> float:
        return found[PREFIX + name, tuple(sorted(labels))]

    assert value("computed_timestamp_seconds") == NOW.timestamp()
    assert value("recoverable_until_timestamp_seconds", source) == (NOW - HOUR).timestamp()
    assert value("rpo_seconds", source) == 3600
    assert value("rto_seconds", source) == value("drill_last_rto_seconds", source) == 12.5
    assert value("wal_archive_lag_seconds", source) == 420
    assert value("backup_last_duration_seconds", source) == 3600
    assert value("backup_last_size_bytes", source, ("kind", "new")) == 10
    assert value("backup_anomaly", source, ("reason", "size")) == 1
    assert value("backup_anomaly", source, ("reason", "failed")) == 0
    assert value("condition", source, ("kind", "wal-gap")) == 1
    assert value("condition", ("source", ""), ("kind", "space")) == 1
    assert value("standing", source, ("verdict", "ok")) == 1
    assert value("key_age_seconds", ("key", "passphrase")) == 360_000
    assert value("repository_free_bytes") == 19
    assert value("notify_deliveries_total", ("channel", "mail"), ("result", "failed")) == 1
    # each metric there is has a sample here, so that none is only on the page
    assert {name for name, _ in found} == {PREFIX + one.name for one in METRICS}


def test_what_is_not_known_has_no_sample() -> None:
    board = Board()
    board.show(Figures(NOW, "1", [stand(Known("db"), now=NOW)]))
    names = {name.removeprefix(PREFIX) for name, _ in read(board.text())}
    assert "recoverable_until_timestamp_seconds" not in names
    assert not names & {"rpo_seconds", "rto_seconds", "repository_free_bytes", "key_age_seconds"}
    assert names >= {"standing", "backup_anomaly", "promise_missed"}
    assert Board().text() == ""


def test_no_sample_comes_twice_and_labels_are_those_of_the_page() -> None:
    counts = Counter((name, tuple(labels.items())) for name, labels, _ in labelled(rows(FIGURES)))
    assert set(counts.values()) == {1}
    for one in METRICS:
        for name, labels, _ in labelled(rows(FIGURES)):
            if name == one.name:
                assert tuple(labels) == one.labels


# -- file --------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "strongroom.prom"
    path.write_text("before\n")
    with path.open() as reader:
        board.write(str(path))
        assert reader.read() == "before\n"  # who had it open reads what was there
    assert path.read_text() == board.text()
    assert os.listdir(tmp_path) == ["strongroom.prom"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(board: Board, tmp_path: Path) -> None:
    (tmp_path / "a.prom").mkdir()
    with pytest.raises(OSError, match="directory"):
        board.write(str(tmp_path / "a.prom"))
    assert os.listdir(tmp_path) == ["a.prom"]


# -- endpoint ----------------------------------------------------------------------------------


@pytest.fixture
def endpoint(board: Board) -> Iterator[Endpoint]:
    endpoint = Endpoint(board, "127.0.0.1", 0)
    yield endpoint
    endpoint.close()


def ask(port: int, **headers: str) -> tuple[str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read()


def test_it_serves_what_was_computed_last(endpoint: Endpoint, board: Board) -> None:
    kind, body = ask(endpoint.port)
    assert kind.startswith("text/plain; version=")
    assert read(body.decode()) == read(board.text())
    board.show(Figures(NOW + HOUR, "1.2"))
    _, body = ask(endpoint.port)
    assert read(body.decode())[PREFIX + "computed_timestamp_seconds", ()] == (
        (NOW + HOUR).timestamp()
    )
    _, packed = ask(endpoint.port, **{"Accept-Encoding": "gzip"})
    assert read(gzip.decompress(packed).decode()) == read(board.text())


def test_a_port_that_is_taken_is_said(endpoint: Endpoint) -> None:
    with pytest.raises(Busy, match=rf"127.0.0.1:{endpoint.port}: Address already in use"):
        Endpoint(Board(), "127.0.0.1", endpoint.port)


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(UsageError, match="Cannot assign"):
        Endpoint(Board(), "192.0.2.1", 0)


def test_who_asks_slowly_or_nothing_keeps_nobody_waiting(endpoint: Endpoint) -> None:
    silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(5)]
    try:
        assert ask(endpoint.port)[1]
    finally:
        for each in silent:
            each.close()


def test_nothing_is_left_when_it_is_closed(board: Board) -> None:
    before = threading.active_count()
    endpoint = Endpoint(board, "127.0.0.1", 0)
    ask(endpoint.port)
    endpoint.close()
    assert threading.active_count() <= before + 1  # that of the answer may still be ending
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=5)
