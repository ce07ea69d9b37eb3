"""What Prometheus is told: computed when a job ends, and kept; a scrape only reads what is there.

Rule: no label grows with history, and nothing secret is in one. A value is as old as
`strongroom_computed_timestamp_seconds`; what grows with time is therefore also given as the moment
that it grows from, and rules subtract that from time(). What is not known has no sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import Thread
from typing import Any, Literal, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.registry import Collector

from strongroom.errors import Busy, UsageError
from strongroom.rules.anomalies import Condition, SourceState, State
from strongroom.rules.durations import Duration
from strongroom.rules.standing import Standing, Word

PREFIX = "strongroom_"
WORDS: tuple[str, ...] = get_args(Word)
ANOMALIES = {
    "backup-failed": "failed",
    "backup-partial": "partial",
    "backup-missed": "missed",
    "backup-late": "late",
    "size": "size",
    "duration": "duration",
    "page-corruption": "pages",
}
OF_SOURCES = ("wal-stale", "wal-gap", "drill-failed", "drill-overdue", "deletion-frozen")
OF_ALL = ("space", "check-failed", "key-age")
SLOWEST = 10.0  # seconds that a client may take over its question


@dataclass(frozen=True, slots=True)
class Told:
    """One metric: its name without the prefix, its kind, its labels, and what it says."""

    name: str
    help: str
    labels: tuple[str, ...] = ("source",)
    kind: Literal["gauge", "counter"] = "gauge"


METRICS = (
    Told("build_info", "1; the version of the program that computed this.", ("version",)),
    Told("computed_timestamp_seconds", "When all of this was computed.", ()),
    Told(
        "standing",
        "1 for the verdict on the source, as `status` says it; 0 for the others.",
        ("source", "verdict"),
    ),
    Told("promise_missed", "1 where a promise of the source is not kept."),
    Told("backups", "Backups that there are, expired ones left out."),
    Told("recoverable_from_timestamp_seconds", "The first moment that can be recovered."),
    Told(
        "recoverable_until_timestamp_seconds",
        "The last moment that can be recovered; time() minus it is what would be lost now.",
    ),
    Told(
        "recoverable_gap_seconds",
        "Time between the first and the last moment of which no moment can be recovered, because"
        " log is missing.",
    ),
    Told(
        "rpo_seconds", "What would have been lost had the source been lost when this was computed."
    ),
    Told("rpo_target_seconds", "How much is promised to be lost at most."),
    Told(
        "rto_seconds", "How long the newest drill took to restore, else the newest whole restore."
    ),
    Told("rto_target_seconds", "How long a restore is promised to take at most."),
    Told(
        "proved_timestamp_seconds",
        "When it was last proved: a green drill, or a check that read everything.",
    ),
    Told("backup_last_success_timestamp_seconds", "When the newest good backup ended."),
    Told("backup_last_duration_seconds", "How long the newest good backup took."),
    Told(
        "backup_last_size_bytes",
        "The newest backup: what it holds (source), what of it was new, what was stored for it.",
        ("source", "kind"),
    ),
    Told("backup_next_due_timestamp_seconds", "When the backup after the newest one is due."),
    Told("backup_overdue", "1 where a backup was due and nobody ran it."),
    Told(
        "backup_anomaly",
        "1 where the newest backup is out of order, and how: failed, partial, missed, late, size"
        " (more than half off the usual), duration (more than twice the usual), pages (wrong checksums).",
        ("source", "reason"),
    ),
    Told("wal_archived_until_timestamp_seconds", "The newest moment whose log is archived."),
    Told("wal_archive_lag_seconds", "How old that moment was when this was computed."),
    Told("drill_last_success_timestamp_seconds", "When the newest green drill ended."),
    Told("drill_last_rto_seconds", "How long the newest drill took to restore."),
    Told("drill_target_seconds", "How often a green drill is promised."),
    Told(
        "condition",
        f"1 for what is wrong now beside the newest backup: {', '.join((*OF_SOURCES, *OF_ALL))}."
        " The source is empty for what concerns all of them.",
        ("source", "kind"),
    ),
    Told("repository_size_bytes", "What rests in the repository.", ()),
    Told("repository_free_bytes", "What can still be stored, where the storage tells.", ()),
    Told("repository_total_bytes", "What the storage holds when it is full, where it tells.", ()),
    Told("key_age_seconds", "How old a key is that opens the repository.", ("key",)),
    Told("key_age_target_seconds", "How old a key may become.", ()),
    Told(
        "notify_deliveries_total",
        "Messages handed to a channel, by what became of them: taken or failed.",
        ("channel", "result"),
        "counter",
    ),
)
BY_NAME = {one.name: one for one in METRICS}


@dataclass(frozen=True, slots=True)
class LastBackup:
    """Sizes of the newest backup, in bytes."""

    size: int
    new_size: int
    stored: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is told, at one moment."""

    now: datetime
    version: str
    standings: Sequence[Standing] = ()
    state: State = field(default_factory=State)
    conditions: Sequence[Condition] = ()
    backups: Mapping[str, LastBackup] = field(default_factory=dict)
    size: int | None = None
    deliveries: Mapping[tuple[str, str], int] = field(default_factory=dict)


Row = tuple[str, tuple[str, ...], float]  # name, values of its labels, value


def rows(figures: Figures) -> Iterator[Row]:
    """Every sample."""
    now, state = figures.now, figures.state
    yield "build_info", (figures.version,), 1.0
    yield "computed_timestamp_seconds", (), now.timestamp()
    sources = {one.name: one for one in state.sources}
    true = {(one.kind, one.source) for one in figures.conditions}
    for one in figures.standings:
        yield from _of_standing(one)
        if one.name in figures.backups:
            last = figures.backups[one.name]
            for kind, size in (
                ("source", last.size), ("new", last.new_size), ("stored", last.stored),
            ):  # fmt: skip
                yield "backup_last_size_bytes", (one.name, kind), float(size)
        for kind, reason in ANOMALIES.items():
            yield "backup_anomaly", (one.name, reason), float((kind, one.name) in true)
        for kind in OF_SOURCES:
            yield "condition", (one.name, kind), float((kind, one.name) in true)
        if one.name in sources:
            yield from _of_state(sources[one.name], now)
    for kind in OF_ALL:
        yield "condition", ("", kind), float((kind, "") in true)
    for name, value in (
        ("repository_size_bytes", figures.size),
        ("repository_free_bytes", state.free),
        ("repository_total_bytes", state.total),
    ):
        if value is not None:
            yield name, (), float(value)
    oldest: dict[str, datetime] = {}  # labels are what people gave: two may be the same
    for key in state.keys:
        oldest[key.label] = min(key.created, oldest.get(key.label, key.created))
    for label, created in oldest.items():
        yield "key_age_seconds", (label,), (now - created).total_seconds()
    yield from _span("key_age_target_seconds", (), state.key_age)
    for (channel, result), count in sorted(figures.deliveries.items()):
        yield "notify_deliveries_total", (channel, result), float(count)


def _of_standing(one: Standing) -> Iterator[Row]:
    name = (one.name,)
    for word in WORDS:
        yield "standing", (one.name, word), float(one.word == word)
    yield "promise_missed", name, float(one.missed)
    yield "backups", name, float(one.backups)
    yield from _moment("recoverable_from_timestamp_seconds", name, one.first)
    yield from _moment("recoverable_until_timestamp_seconds", name, one.until)
    if one.until is not None:
        yield "recoverable_gap_seconds", name, one.gap_seconds
    if one.rpo_seconds is not None:
        yield "rpo_seconds", name, one.rpo_seconds
    yield from _span("rpo_target_seconds", name, one.rpo)
    if one.took is not None:
        yield "rto_seconds", name, one.took.seconds
        if one.took.by == "drill":
            yield "drill_last_rto_seconds", name, one.took.seconds
    yield from _span("rto_target_seconds", name, one.rto)
    if one.proved is not None:
        yield from _moment("proved_timestamp_seconds", name, one.proved.ended)
    yield from _moment("drill_last_success_timestamp_seconds", name, one.drilled)
    yield from _span("drill_target_seconds", name, one.drill_every)
    yield from _moment("backup_next_due_timestamp_seconds", name, one.due)
    yield "backup_overdue", name, float(one.overdue)


def _of_state(source: SourceState, now: datetime) -> Iterator[Row]:
    name = (source.name,)
    good = [run for run in source.backups if run.good]
    if good:
        yield from _moment("backup_last_success_timestamp_seconds", name, good[-1].ended)
        yield "backup_last_duration_seconds", name, good[-1].seconds
    if source.log is not None and source.log.until is not None:
        until = source.log.until
        yield from _moment("wal_archived_until_timestamp_seconds", name, until)
        yield "wal_archive_lag_seconds", name, max(0.0, (now - until).total_seconds())


def _moment(name: str, labels: tuple[str, ...], moment: datetime | None) -> Iterator[Row]:
    if moment is not None:
        yield name, labels, moment.timestamp()


def _span(name: str, labels: tuple[str, ...], span: Duration | None) -> Iterator[Row]:
    if span is not None:
        yield name, labels, float(span.approximate_seconds)


def labelled(samples: Iterable[Row]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Samples with the names of their labels."""
    for name, values, value in samples:
        yield name, dict(zip(BY_NAME[name].labels, values, strict=True)), value


# -- for Prometheus ----------------------------------------------------------------------------


class Board(Collector):
    """The last figures that were computed; whoever scrapes reads these and computes nothing."""

    def __init__(self) -> None:
        self._families: tuple[Metric, ...] = ()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def show(self, figures: Figures) -> None:
        """These count from now on."""
        self._families = tuple(families(rows(figures)))

    def collect(self) -> Iterable[Metric]:
        """What is shown."""
        return self._families

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self.registry).decode()

    def write(self, path: str) -> None:
        """Replace a file, so that nobody ever reads half of it. OSError."""
        write_to_textfile(os.path.abspath(path), self.registry)


def families(samples: Iterable[Row]) -> Iterator[Metric]:
    """Samples by metric, in the order of `METRICS`; those without any are left out."""
    found: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for name, labels, value in samples:
        found.setdefault(name, []).append((labels, value))
    for told in METRICS:
        if told.name not in found:
            continue
        kind = CounterMetricFamily if told.kind == "counter" else GaugeMetricFamily
        family: Any = kind(PREFIX + told.name, told.help, labels=told.labels)
        for labels, value in found[told.name]:
            family.add_metric(labels, value)
        yield family


class _Quiet(WSGIRequestHandler):
    timeout = SLOWEST

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Six(ThreadingWSGIServer):
    address_family = 10  # AF_INET6


class Endpoint:
    """Serves a board over HTTP, until it is closed."""

    def __init__(self, board: Board, host: str, port: int) -> None:
        kind: type[WSGIServer] = _Six if ":" in host else ThreadingWSGIServer
        try:
            self._server = make_server(
                host, port, make_wsgi_app(board.registry), kind, handler_class=_Quiet
            )
        except OSError as fault:
            raise _not_served(host, port, fault) from None
        self.port: int = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, daemon=True, name="metrics")
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _not_served(host: str, port: int, fault: OSError) -> Busy | UsageError:
    kind = Busy if fault.errno == 98 else UsageError  # EADDRINUSE
    return kind(
        f"Metrics cannot be served at {host}:{port}: {os.strerror(fault.errno or 0)}.",
        means="Nothing was started; the backups are untouched.",
        do="Give `[metrics] listen` another address, or end what listens there.",
    )


__all__ = [
    "METRICS",
    "PREFIX",
    "Board",
    "Endpoint",
    "Figures",
    "LastBackup",
    "Told",
    "families",
    "labelled",
    "rows",
]
