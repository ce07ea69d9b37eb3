"""points, can-restore, table; and restore, where the source is a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.measured import expected, remember
from strongroom.cli.names import show_name, show_text
from strongroom.cli.places import parse_place
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.cli.verbs.source import describe
from strongroom.errors import Incomplete, Interrupted, NotFound, StrongroomError, UsageError
from strongroom.rules.sizes import parse_size, show_seconds, show_size

if TYPE_CHECKING:
    from strongroom.operations.can_restore import Answer
    from strongroom.operations.points import Cluster
    from strongroom.operations.recording import Draft
    from strongroom.operations.recovering import Opening
    from strongroom.postgres.wal.records import Commit
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.ports import Outcome
    from strongroom.repository.repository import Repository
    from strongroom.rules.recovery import Gap, Target, Verdict, Window

_DEFAULT = Everywhere()
_CLUSTERS = Group("Clusters", sort_key=22)
_POINT = "gives one point to recover to"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class TargetFlags:
    """Where the recovery of a cluster ends."""

    lsn: Annotated[str | None, Parameter(group=_CLUSTERS)] = None
    """To this position in the log, X/X."""
    xid: Annotated[int | None, Parameter(group=_CLUSTERS)] = None
    """To the end of this transaction."""
    name: Annotated[str | None, Parameter(group=_CLUSTERS)] = None
    """To this restore point (pg_create_restore_point)."""
    immediate: Annotated[bool, Parameter(group=_CLUSTERS)] = False
    """To the end of the backup and no further."""
    timeline: Annotated[int | None, Parameter(group=_CLUSTERS)] = None
    """On this timeline instead of the newest."""
    exclusive: Annotated[bool, Parameter(group=_CLUSTERS)] = False
    """Leave out what happened at the very point."""

    def given(self) -> list[str]:
        """The flags that were given."""
        names = {
            "--lsn": self.lsn,
            "--xid": self.xid,
            "--name": self.name,
            "--immediate": self.immediate,
            "--timeline": self.timeline,
            "--exclusive": self.exclusive,
        }
        return [name for name, value in names.items() if value]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ClusterFlags:
    """How a cluster is restored."""

    as_: Annotated[Literal["standby"] | None, Parameter(name="--as", group=_CLUSTERS)] = None
    """standby: one that goes on recovering whatever is archived."""
    tablespace: Annotated[list[str] | None, Parameter(group=_CLUSTERS)] = None
    """OLD=NEW: where a tablespace goes; may be given several times. OLD=OLD allows its old place."""
    delta: Annotated[bool, Parameter(group=_CLUSTERS)] = False
    """Into a data directory that is there: only what differs is fetched, what the backup does not
    name is removed."""
    action: Annotated[Literal["promote", "pause", "shutdown"], Parameter(group=_CLUSTERS)] = (
        "promote"
    )
    """What the server does at the point: open for writing, wait to be looked at, or stop."""
    primary: Annotated[str | None, Parameter(group=_CLUSTERS)] = None
    """With --as standby: the server to stream from too, as "host=… port=… user=…"; its password goes
    into the standby's ~/.pgpass."""

    def given(self) -> list[str]:
        """The flags that were given."""
        names = {
            "--as": self.as_,
            "--tablespace": self.tablespace,
            "--delta": self.delta,
            "--action": self.action != "promote",
            "--primary": self.primary,
        }
        return [name for name, value in names.items() if value]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class OpeningFlags:
    """How a cluster is opened without being restored."""

    cache: Annotated[str, Parameter(group=_CLUSTERS)] = "256MiB"
    """How much of what was read is kept in memory, opened."""
    scratch: Annotated[str | None, Parameter(group=_CLUSTERS)] = None
    """Where what is written goes, instead of $TMPDIR; gone at the end."""
    restore: Annotated[bool, Parameter(group=_CLUSTERS)] = False
    """Restore the whole cluster there first, as where nothing can be mounted."""

    def how(self, desk: Desk) -> Opening:
        """The same as operations take it."""
        from strongroom.operations.recovering import Opening  # noqa: PLC0415

        try:
            cache = parse_size(self.cache)
        except ValueError as fault:
            raise UsageError(f"--cache: {fault}.") from None
        if self.scratch is not None and not os.path.isdir(self.scratch):
            raise UsageError(f"--scratch: {self.scratch} is no directory.", do="Make it first.")
        scratch = None if self.scratch is None else os.path.abspath(self.scratch)

        def tell(path: bytes, fault: StrongroomError) -> None:
            desk.output.warning(f"{show_name(path)}: {fault.what}")

        return Opening(not self.restore, cache, scratch, tell, desk.output.note)


NO_TARGET, WHOLE_CLUSTER, _OPENING = TargetFlags(), ClusterFlags(), OpeningFlags()


def target_of(
    desk: Desk, flags: TargetFlags, at: str | None, *, backup: str | None = None
) -> Target:
    """The point that the flags name; without any, the end of the backup named, else of the log."""
    from strongroom.format.wal import parse_lsn  # noqa: PLC0415
    from strongroom.rules.recovery import Target  # noqa: PLC0415

    chosen = {
        "--at": at,
        "--lsn": flags.lsn,
        "--xid": flags.xid,
        "--name": flags.name,
        "--immediate": flags.immediate or None,
    }
    names = [name for name, value in chosen.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)}: each {_POINT}.", do="Give one of them.")
    timeline, exclusive = flags.timeline, flags.exclusive
    if exclusive and names not in (["--at"], ["--lsn"], ["--xid"]):
        raise UsageError("--exclusive goes with --at, --lsn or --xid.", do="Give one of them.")
    if at is not None:
        return Target("time", time=desk.moment(at), timeline=timeline, exclusive=exclusive)
    if flags.lsn is not None:
        try:
            lsn = parse_lsn(flags.lsn)
        except ValueError as fault:
            raise UsageError(f"--lsn: {fault}.", do="Write it like 0/3000148.") from None
        return Target("lsn", lsn=lsn, timeline=timeline, exclusive=exclusive)
    if flags.xid is not None:
        return Target("xid", xid=flags.xid, timeline=timeline, exclusive=exclusive)
    if flags.name is not None:
        return Target("name", name=flags.name, timeline=timeline)
    if flags.immediate or (backup is not None and timeline is None):
        return Target("immediate", timeline=timeline)
    return Target("latest", timeline=timeline)


# -- points ------------------------------------------------------------------------------------


def points(source: str, /, *, gaps: bool = False, everywhere: Everywhere = _DEFAULT) -> int:
    """Show which moments of a cluster can be recovered.

    Parameters
    ----------
    source
        The source, backed up physically; it need not be configured here.
    gaps
        Log that is missing too, and why.
    """
    from strongroom.operations.points import all_points, look  # noqa: PLC0415

    desk = Desk(everywhere)
    with desk.repository() as repository:
        cluster = look(repository, source)
        found = all_points(cluster)
    desk.output.document(
        "points",
        {
            "source": source,
            "system_id": str(cluster.system_id),
            "windows": [_window_body(cluster, one) for one in found.windows],
            "restore_points": [
                {
                    "name": point.name,
                    "timeline": timeline,
                    "time": point.time.isoformat(),
                    "lsn": _lsn(point.lsn),
                }
                for timeline, point in found.named
            ],
            "gaps": [_gap_body(cluster, one) for one in found.gaps],
            "not_whole": dict(found.bad),
            "notes": [*cluster.notes, *found.notes],
        },
    )
    for window in found.windows:
        desk.output.line(
            f"timeline {window.timeline}: every moment from {_show(window.start_time)} to"
            f" {_show(window.until)}, {_count(window.bases, 'backup')}"
        )
    if not found.windows:
        desk.output.line(f"{show_text(source)}: nothing can be recovered")
    for timeline, point in found.named:
        desk.output.line(
            f"restore point {show_text(point.name)!r}: {_show(point.time)}, timeline {timeline}"
        )
    for name, why in found.bad.items():
        desk.output.warning(f"backup {name[:ID_SHOWN]} is not whole: {why}")
    if gaps:
        desk.output.lines(
            f"gap: {_gap_text(cluster, gap)}: {show_text(gap.reason)}" for gap in found.gaps
        )
        if not found.gaps:
            desk.output.line("no gap between segments")
    elif found.gaps:
        desk.output.note(f"{_count(len(found.gaps), 'gap')}: --gaps shows them.")
    desk.output.lines(f"note: {show_text(note)}" for note in (*cluster.notes, *found.notes))
    return 0


# -- can-restore -------------------------------------------------------------------------------


def can_restore(
    source: str,
    /,
    *,
    at: str | None = None,
    backup: Annotated[str | None, Parameter(alias="-b")] = None,
    to: str | None = None,
    target: TargetFlags = NO_TARGET,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Say whether a cluster can be recovered to a point: YES or NO, and why. Exit status 5 for NO.

    Parameters
    ----------
    source
        The source, backed up physically.
    at
        To this time: 2026-11-23T02:13:05Z, 02:13, "20 minutes ago". Without any point: the newest.
    backup
        Beginning with this backup: the beginning of its id.
    to
        Into this directory: is there room for it?
    """
    from strongroom.operations.can_restore import (  # noqa: PLC0415
        answer,
        nearest_text,
        room_for,
        target_text,
    )
    from strongroom.operations.points import look  # noqa: PLC0415

    desk = Desk(everywhere)
    wanted = target_of(desk, target, at, backup=backup)
    with desk.repository() as repository:
        base = _backup(repository, source, backup)
        cluster = look(repository, source, backup=base)
        found = answer(cluster, wanted, backup=base)
        free = None
        if to is not None and found.verdict.yes:
            found, free = room_for(found, os.fsencode(to))
    verdict = found.verdict
    seconds = expected(desk, source, _weight(cluster, verdict)) if verdict.yes else None
    body = _answer_body(cluster, found, seconds)
    if free is not None and verdict.base is not None:
        body["space"] = {"to": to, "needed": verdict.base.size, "free": free}
    desk.output.document("can-restore", body)
    desk.output.line(f"{'YES' if verdict.yes else 'NO'}: {show_text(target_text(wanted))}")
    desk.output.lines(f"  {show_text(reason)}" for reason in verdict.reasons)
    if verdict.gap is not None:
        desk.output.line(
            f"  gap: {_gap_text(cluster, verdict.gap)}: {show_text(verdict.gap.reason)}"
        )
    if verdict.yes:
        desk.output.lines(_around_lines(found))
        desk.output.line(f"  to fetch: {show_size(_weight(cluster, verdict))}")
        if free is not None and verdict.base is not None:
            desk.output.line(
                f"  space: {show_size(verdict.base.size)} of {show_size(free)} free there"
            )
        measured = "no restore was measured yet" if seconds is None else show_seconds(seconds)
        desk.output.line(f"  expected time: {measured}")
    elif wanted.kind == "time":
        desk.output.line(f"  {nearest_text(verdict)}")
    desk.output.lines(f"  note: {show_text(note)}" for note in verdict.notes)
    return 0 if verdict.yes else NotFound.exit_status


def _around_lines(found: Answer) -> list[str]:
    lines = []
    if found.last is not None:
        lines.append(f"  last commit in it: {_commit_text(found.last)}")
    if found.next is not None:
        lines.append(f"  next one, not in it: {_commit_text(found.next)}")
    lines += [
        f"  large transaction near by: {_commit_text(one)}, {show_size(one.bytes)} of log"
        for one in found.large
    ]
    return lines


def _commit_text(commit: Commit) -> str:
    word = "aborted " if commit.aborted else ""
    return f"{word}{_show(commit.time)}, transaction {commit.xid}, {_lsn(commit.lsn_end)}"


def _weight(cluster: Cluster, verdict: Verdict) -> int:
    """Bytes of the backup and of the log that is replayed."""
    base = verdict.base.size if verdict.base is not None else 0
    return base + verdict.segments * cluster.log.segment_size


def _answer_body(cluster: Cluster, found: Answer, seconds: float | None) -> dict[str, Any]:
    from strongroom.operations.can_restore import target_text  # noqa: PLC0415

    verdict = found.verdict
    return {
        "source": cluster.source,
        "yes": verdict.yes,
        "target": target_text(verdict.target),
        "reasons": list(verdict.reasons),
        "notes": list(verdict.notes),
        "backup": None if verdict.base is None else verdict.base.id,
        "timeline": verdict.timeline,
        "segments": [
            {"timeline": run.timeline, "first": _segment(cluster, run.timeline, run.first)}
            | {"last": _segment(cluster, run.timeline, run.last), "count": run.count}
            for run in verdict.runs
        ],
        "gap": None if verdict.gap is None else _gap_body(cluster, verdict.gap),
        "before": None if verdict.before is None else verdict.before.isoformat(),
        "after": None if verdict.after is None else verdict.after.isoformat(),
        "last_commit": None if found.last is None else _commit_body(found.last),
        "next_commit": None if found.next is None else _commit_body(found.next),
        "large_transactions": [_commit_body(one) for one in found.large],
        "size": _weight(cluster, verdict),
        "expected_seconds": seconds,
    }


def _commit_body(commit: Commit) -> dict[str, Any]:
    return {
        "xid": commit.xid,
        "time": commit.time.isoformat(),
        "lsn": _lsn(commit.lsn_end),
        "bytes": commit.bytes,
        "aborted": commit.aborted,
    }


# -- restore -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A restore of a cluster, as it was asked for."""

    source: str
    to: str | None
    at: str | None
    backup: str | None
    owner: bool
    dry_run: bool
    target: TargetFlags
    cluster: ClusterFlags


def restore_cluster(desk: Desk, repository: Repository, wanted: Wanted, run: Draft) -> int:
    """Restore a data directory that recovers to a point."""
    from strongroom.operations.can_restore import answer, require, target_text  # noqa: PLC0415
    from strongroom.operations.points import look  # noqa: PLC0415
    from strongroom.operations.recovering import recovery_of  # noqa: PLC0415
    from strongroom.operations.restore import plan, restore  # noqa: PLC0415

    if not wanted.to:
        raise UsageError("Where to?", do="Give `--to DIRECTORY`, a new or an empty one.")
    target = target_of(desk, wanted.target, wanted.at, backup=wanted.backup)
    standby = wanted.cluster.as_ == "standby"
    if standby and target.kind not in {"latest", "immediate"}:
        raise UsageError(
            "A standby has no point to stop at.", do="Leave --as standby or the point out."
        )
    if standby and wanted.cluster.action != "promote":
        raise UsageError("A standby does not come to a point.", do="Leave --action out.")
    primary = _primary(wanted.cluster.primary, standby=standby)
    backup = _backup(repository, wanted.source, wanted.backup)
    cluster = look(repository, wanted.source, backup=backup)
    found = answer(cluster, target, backup=backup)
    verdict = require(found, cluster)
    assert verdict.base is not None
    snapshot = cluster.snapshots[verdict.base.id]
    run.of(snapshot)
    run.detail["target"] = target_text(target)
    sink = wiring.cluster_sink(
        os.fsencode(wanted.to),
        recovery=recovery_of(
            verdict,
            restore_command=_fetch_command(desk, verdict, standby=standby),
            standby=standby,
            primary=primary,
            action=wanted.cluster.action,
        ),
        delta=wanted.cluster.delta,
        spaces=dict(_space(one) for one in wanted.cluster.tablespace or ()),
        made=verdict.spaces,
        owner=wanted.owner,
        jobs=desk.jobs,
    )
    lines = [f"{show_text(target_text(target))}: {reason}" for reason in verdict.reasons[:1]]
    lines += list(verdict.reasons[1:]) + _around_lines(found)
    lines += [f"note: {note}" for note in verdict.notes]
    if wanted.dry_run:
        what = plan(repository, snapshot, sink)
        desk.output.line(
            f"Would restore {show_text(target_text(target))} of {show_text(wanted.source)}, from"
            f" backup {snapshot.id[:ID_SHOWN]}, {show_moment(snapshot.time)}:"
        )
        desk.output.lines(f"  {show_text(line.strip())}" for line in lines)
        desk.output.lines(describe(what))
        body = {"dry_run": True, "snapshot": snapshot_body(snapshot), "plan": dict(what)}
        return desk.output.finish(
            "restore", body | {"verdict": _answer_body(cluster, found, None)}, None
        )
    for line in lines:
        desk.output.note(show_text(line.strip()))
    began = wiring.steady()
    try:
        with listening(desk.output) as progress:
            outcome = restore(repository, snapshot, sink, progress=progress)
    except Interrupted as fault:
        fault.means = "The target is not complete and does not start; the backup is untouched."
        fault.do = "Run the same command again with --delta; what is there is kept."
        raise
    seconds = wiring.steady() - began
    run.files, run.size, run.problems = outcome.files, outcome.size, len(outcome.problems)
    remember(desk, wanted.source, outcome.size, seconds)
    return _tell(desk, wanted, snapshot, outcome, seconds, _answer_body(cluster, found, None))


def _primary(conninfo: str | None, *, standby: bool) -> str:
    """The conninfo of the server that a standby streams from."""
    if conninfo is None:
        return ""
    if not standby:
        raise UsageError("--primary goes with --as standby.", do="Say both, or neither.")
    return wiring.primary_conninfo(conninfo)


def _fetch_command(desk: Desk, verdict: Verdict, *, standby: bool) -> str:
    from strongroom.operations.recovering import wants_unfinished  # noqa: PLC0415

    flags = desk.flags
    return wiring.fetch_command(
        desk.loaded.path,
        desk.environ,
        repository=flags.repository,
        key_file=flags.key_file,
        passphrase_file=flags.passphrase_file,
        recovery_code_file=flags.recovery_code_file,
        standby=standby,
        partial=wants_unfinished(verdict) and not standby,
    )


def _tell(
    desk: Desk,
    wanted: Wanted,
    snapshot: Snapshot,
    outcome: Outcome,
    seconds: float,
    verdict: dict[str, Any],
) -> int:
    rate = show_size(outcome.size / max(seconds, 1e-9))
    desk.output.line(
        f"{show_text(wanted.source)}: restored {outcome.files:,} files,"
        f" {show_size(outcome.size)} in {show_seconds(seconds)} ({rate}/s)"
    )
    told = {key: value for key, value in outcome.facts.items() if value or key != "tablespaces"}
    told |= {key: show_size(outcome.facts[key]) for key in ("fetched", "kept")}
    desk.output.lines(describe(told))
    desk.output.line(
        f"  start it as its owner: pg_ctl -D {outcome.facts['target']} start; it fetches the log by"
        " `strongroom wal fetch`, which needs the key of the repository in its environment, or"
        " `strongroom wal daemon` beside it"
    )
    problems = [
        {"path": problem.path.decode("utf-8", "backslashreplace"), "reason": problem.reason}
        for problem in outcome.problems
    ]
    body = {
        "dry_run": False,
        "snapshot": snapshot_body(snapshot),
        "verdict": verdict,
        "files": outcome.files,
        "size": outcome.size,
        "seconds": round(seconds, 3),
        "problems": problems[:1000],
        "facts": dict(outcome.facts),
    }
    fault = None
    if problems:
        fault = Incomplete(
            f"{_count(len(problems), 'page')} had a wrong checksum on the server already.",
            means="Everything is as it was on the server; these pages were damaged there.",
            do="`pg_amcheck` and the tables of these files show what is in them.",
        )
    return desk.output.finish("restore", body, fault)


def _space(text: str) -> tuple[bytes, bytes]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise UsageError(f"--tablespace {text}: not OLD=NEW.", do="Write it like /mnt/fast=/srv/b.")
    return os.fsencode(old), os.fsencode(new)


def _backup(repository: Repository, source: str, backup: str | None) -> str | None:
    from strongroom.operations.browse import find_snapshot  # noqa: PLC0415

    return None if backup is None else find_snapshot(repository, source, backup=backup).id


def found_at(
    desk: Desk, repository: Repository, place: str, flags: TargetFlags
) -> tuple[Cluster, Answer]:
    """The cluster and the point that SOURCE@T, or SOURCE and flags, name; NotFound for a NO."""
    from strongroom.cli.points import is_id  # noqa: PLC0415
    from strongroom.operations.can_restore import answer, require  # noqa: PLC0415
    from strongroom.operations.points import look  # noqa: PLC0415

    where = parse_place(place)
    if where.path:
        raise UsageError(f"{place} names a path.", do="Write SOURCE@T and nothing behind it.")
    at, backup = (None, where.point) if is_id(where.point) else (where.point or None, None)
    base = _backup(repository, where.source, backup)
    cluster = look(repository, where.source, backup=base)
    found = answer(cluster, target_of(desk, flags, at, backup=backup), backup=base)
    require(found, cluster)
    return cluster, found


# -- table -------------------------------------------------------------------------------------


def table(
    place: str,
    name: str,
    /,
    *,
    output: Annotated[str, Parameter(alias="-o")],
    database: str | None = None,
    opening: OpeningFlags = _OPENING,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Take one table out of a cluster as it was, through a throw-away server.

    Parameters
    ----------
    place
        SOURCE@T; T is a time, or an id for the end of that backup. Without T the newest state.
    name
        The table, schema.table, as pg_dump -t reads it.
    output
        Where to: a file that ends in .sql, .sql.gz or .dump (the format of pg_restore).
    database
        In which database, where the cluster has several.
    """
    from strongroom.operations.table import take_table  # noqa: PLC0415

    desk = Desk(everywhere)
    how = opening.how(desk)
    what = f"read table {name} of {place}"
    with (
        desk.recorded("read", source=parse_place(place).source, what=what) as run,
        desk.repository() as repository,
    ):
        cluster, found = found_at(desk, repository, place, NO_TARGET)
        verdict = found.verdict
        assert verdict.base is not None
        run.of(cluster.snapshots[verdict.base.id])
        run.detail |= {"table": name, "to": output}
        configured = desk.configuration.source.get(cluster.source)
        with listening(desk.output) as progress:
            done = take_table(
                repository,
                cluster,
                verdict,
                name,
                output,
                database=database or wiring.database_of(configured),
                clients=wiring.clients(configured),
                how=how,
                jobs=desk.jobs,
                progress=progress,
            )
        run.files, run.size = 1, done.size
    desk.output.lines(line for line in _around_lines(found))
    desk.output.line(f"{show_text(name)}: {show_size(done.size)} in {done.path}")
    body = {"path": done.path, "size": done.size, "database": done.database}
    return desk.output.finish("table", body | {"verdict": _answer_body(cluster, found, None)}, None)


# -- words -------------------------------------------------------------------------------------


def _window_body(cluster: Cluster, window: Window) -> dict[str, Any]:
    return {
        "timeline": window.timeline,
        "backup": window.base,
        "backups": window.bases,
        "from": window.start_time.isoformat(),
        "from_lsn": _lsn(window.start),
        "until": window.until.isoformat(),
        "until_lsn": _lsn(window.end),
        "last_target": None if window.last_target is None else window.last_target.isoformat(),
        "ends": _gap_body(cluster, window.ends),
    }


def _gap_body(cluster: Cluster, gap: Gap) -> dict[str, Any]:
    last = None if gap.last is None else _segment(cluster, gap.timeline, gap.last)
    first = _segment(cluster, gap.timeline, gap.first)
    return {"timeline": gap.timeline, "first": first, "last": last, "reason": gap.reason}


def _gap_text(cluster: Cluster, gap: Gap) -> str:
    from strongroom.rules.recovery import gap_text  # noqa: PLC0415

    return gap_text(cluster.log, gap)


def _segment(cluster: Cluster, timeline: int, number: int) -> str:
    from strongroom.rules.recovery import segment_text  # noqa: PLC0415

    return segment_text(cluster.log, timeline, number)


def _lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _show(moment: Any) -> str:
    from strongroom.rules.recovery import show  # noqa: PLC0415

    return show(moment)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


__all__: Sequence[str] = [
    "NO_TARGET",
    "WHOLE_CLUSTER",
    "ClusterFlags",
    "OpeningFlags",
    "TargetFlags",
    "Wanted",
    "can_restore",
    "found_at",
    "points",
    "restore_cluster",
    "table",
]
