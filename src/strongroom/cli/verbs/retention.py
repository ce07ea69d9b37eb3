"""keep, expire, undelete, prune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.config.model import PostgresTable, SourceTable
from strongroom.errors import Damaged, NotFound, Refused, UsageError
from strongroom.rules.durations import parse_duration
from strongroom.rules.proof import NOTHING
from strongroom.rules.retention import Backup, Plan
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.operations.retaining import Judged
    from strongroom.repository.pruning import Pruned
    from strongroom.repository.repository import Repository

_DEFAULT = Everywhere()


def keep(
    source: str,
    backup: str,
    /,
    *,
    until: str | None = None,
    why: str = "",
    release: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Hold a backup, whatever the retention says, or release it again.

    Parameters
    ----------
    source
        Whose backup.
    backup
        Its id, or a unique beginning of it; `latest`, `oldest`.
    until
        Until when: a date or time with its offset, or a span from now such as "90d". Without it, for
        good.
    why
        Words that `expire` prints with it.
    release
        End the hold.
    """
    from strongroom.operations import browse, retaining  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    if release and until is not None:
        raise UsageError("--release and --until exclude each other.", do="Give one of them.")
    moment = None if until is None else read_until(until, now=desk.now)
    with desk.recorded("keep", source=source) as run, desk.repository() as repository:
        try:
            snapshot = browse.find_snapshot(repository, source, backup=backup)
        except NotFound as nowhere:
            if release or backup in ("latest", "oldest"):
                raise
            try:
                snapshot = browse.find_expired(repository, source, backup)
            except NotFound:
                raise nowhere from None
        run.of(snapshot)
        run.detail |= {"until": None if moment is None else moment.isoformat(), "why": why}
        run.what = f"{'release' if release else 'keep'} backup {snapshot.id} of {source}"
        if release:
            retaining.release(repository, snapshot, why=why, now=desk.now)
            said = "is not held any more"
        else:
            retaining.hold(repository, snapshot, until=moment, why=why, now=desk.now)
            said = "is held " + ("for good" if moment is None else f"until {show_moment(moment)}")
    body = {
        "until": None if moment is None else moment.isoformat(),
        "held": not release,
        "why": why,
    }
    desk.output.document("keep", {"backup": snapshot_body(snapshot), **body})
    desk.output.line(f"{snapshot.id[:ID_SHOWN]} of {show_text(source)} {said}.")
    return 0


def undelete(source: str, backup: str, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Make a backup that was expired a backup again, as long as no prune has swept it.

    Parameters
    ----------
    source
        Whose backup.
    backup
        Its id, or a unique beginning of it, as `strongroom list --expired` shows it.
    """
    from strongroom.operations import browse, retaining  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    with desk.recorded("undelete", source=source) as run, desk.repository() as repository:
        snapshot = browse.find_expired(repository, source, backup)
        run.of(snapshot)
        run.what = f"undelete backup {snapshot.id} of {source}"
        retaining.revive(repository, snapshot.name, now=desk.now)
    desk.output.document("undelete", {"backup": snapshot_body(snapshot)})
    desk.output.line(f"{snapshot.id[:ID_SHOWN]} of {show_text(source)} is a backup again.")
    return 0


def expire(
    source: str | None = None,
    /,
    *,
    dry_run: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Decide by the retention of each source which backups go; say of each why it stays or goes.

    Nothing is deleted: `strongroom prune` does that, and until then `strongroom undelete` brings a
    backup back. Exit status 4 when something forbids deletion: clocks that contradict each other, a
    newest backup half the usual size, backups that have stopped.

    Parameters
    ----------
    source
        Only this source.
    dry_run
        Only say it.
    """
    from strongroom.operations import retaining  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    tables = desk.configuration.source
    chosen = {source: desk.source_table(source)} if source is not None else dict(tables)
    rows: list[dict[str, Any]] = []
    frozen: dict[str, tuple[str, ...]] = {}
    with desk.recorded("expire", source=source or "") as run, desk.repository() as repository:
        now = desk.now
        for judged in _judged(desk, repository, chosen, now=now):
            gone = [] if dry_run else retaining.expire(repository, judged, now=now)
            rows.append(_source_body(judged, [one.id for one in gone]))
            desk.output.lines(_source_lines(judged, dry_run=dry_run))
            if judged.plan.frozen:
                frozen[judged.source] = judged.plan.frozen
        run.fault = _frozen(frozen) if frozen else None
        gone_ids = {str(row["source"]): row["expired"] for row in rows if row["expired"]}
        run.nothing = dry_run
        run.problems, run.files = len(frozen), sum(map(len, gone_ids.values()))
        run.what = f"expire {run.files} backups"
        run.detail |= {"expired": gone_ids, "frozen": {k: list(v) for k, v in frozen.items()}}
    desk.output.document("expire", {"dry_run": dry_run, "sources": rows})
    if not rows:
        desk.output.note("No source is configured.")
    if not frozen:
        return 0
    fault = _frozen(frozen)
    desk.output.error_lines(fault)
    return fault.exit_status


def prune(
    *,
    dry_run: bool = False,
    live: float = 0.75,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Give back the space of what no backup relies on. Nothing else deletes.

    Safe beside running backups and other prunes, and needs no key that opens data. If it stops
    anywhere, run it again. Of sources whose deletion `expire` refuses nothing is swept.

    Parameters
    ----------
    dry_run
        Only say what would be given back.
    live
        Repack packs of which less than this part is relied on, 0 to 1; with 1 no byte stays that
        nothing relies on.
    """
    from strongroom.repository.pruning import Pruner, Rules  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    if not 0.0 <= live <= 1.0:
        raise UsageError("--live is a part of 1.", do="Write it like --live 0.75.")
    with (
        desk.recorded("prune") as run,
        desk.repository() as repository,
        listening(desk.output) as progress,
    ):
        run.nothing = dry_run
        spared = {
            judged.source: judged.plan.frozen
            for judged in _judged(desk, repository, desk.configuration.source, now=desk.now)
            if judged.plan.frozen
        }
        rules = Rules(live=live, pack_size=repository.settings.pack_size, spared=frozenset(spared))
        pruner = Pruner(repository, rules=rules, progress=progress)
        done = pruner.plan() if dry_run else pruner.run()
        log = _prune_wal(repository, dry_run=dry_run)
        fault = None
        if done.kept:
            fault = Damaged(
                f"{len(done.kept)} objects could not be dealt with: {', '.join(done.kept[:3])}.",
                means="They stay, and all that rests in them. Everything else was done.",
                do="`strongroom check --read-data` says which backups they hurt.",
            )
        run.fault, run.size, run.problems = fault, done.freed, len(done.kept)
        run.what = f"prune: {len(done.swept)} backups swept, {done.dead} packs deleted"
        run.detail |= {
            "generation": done.generation,
            "swept": list(done.swept),
            "packs_deleted": done.dead,
            "packs_repacked": done.repacked,
            "wal_files": log["files"],
            "spared": sorted(spared),
        }
    desk.output.lines(_prune_lines(done, log, dry_run=dry_run))
    for name, reasons in spared.items():
        desk.output.warning(f"expired backups of {show_text(name)} are not swept: {reasons[0]}")
    body = {"dry_run": dry_run, **_prune_body(done), "wal": log, "spared": sorted(spared)}
    return desk.output.finish("prune", body, fault)


def _judged(
    desk: Desk, repository: Repository, sources: Mapping[str, SourceTable], *, now: datetime
) -> Iterator[Judged]:
    """The plan of each source, by what the log and both clocks say."""
    from strongroom.operations import clocks, retaining  # noqa: PLC0415 -- numpy behind it

    apart = clocks.clock_difference(repository.storage, repository.seams)
    journal = desk.recorder.journal
    proof = NOTHING if journal is None else retaining.proof_of(journal)
    for name, table in sources.items():
        yield retaining.judge(
            repository,
            name,
            retaining.policy_of(desk.configuration, table),
            physical=isinstance(table, PostgresTable) and table.method == "physical",
            proof=proof,
            now=now,
            store_now=None if apart is None else now + timedelta(seconds=apart),
        )


def read_until(text: str, *, now: datetime) -> datetime:
    """A moment to come: a span from now, a date (its end, UTC) or a time with its offset."""
    try:
        return parse_duration(text).after(now)
    except ValueError:
        pass  # not a span; perhaps a date
    try:
        moment = datetime.fromisoformat(text.strip().upper())
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a date nor a span of time.",
            do='Write it like 2027-01-31, 2027-01-31T12:00Z or "90d".',
        ) from None
    if moment.tzinfo is None:
        if len(text.strip()) > len("2027-01-31"):
            raise UsageError(
                f"{text!r} does not say in which zone it is meant.",
                do="Write it with its offset, like 2027-01-31T12:00Z.",
            )
        moment = moment.replace(tzinfo=UTC) + timedelta(days=1)
    if moment <= now:
        raise UsageError(f"{text!r} is over.", do="Write a moment that is to come.")
    return moment.astimezone(UTC)


def _prune_wal(repository: Repository, *, dry_run: bool) -> dict[str, Any]:
    from strongroom.operations.wal_retention import prune_wal  # noqa: PLC0415 -- numpy behind it

    return prune_wal(repository, dry_run=dry_run).as_json()


# -- words -------------------------------------------------------------------------------------


def _source_lines(judged: Judged, *, dry_run: bool) -> list[str]:
    plan, goes = judged.plan, len(judged.plan.goes)
    would = "would go" if dry_run else "go"
    lines = [f"{show_text(judged.source)}: {len(plan.rows) - goes} stay, {goes} {would}"]
    for row in plan.rows:
        word = "stays" if row.stays else "goes "
        when = show_moment(row.backup.born)
        reasons = show_text("; ".join([*row.reasons, *_known(row.backup)]))
        lines.append(f"  {word}  {row.backup.id[:ID_SHOWN]}  {when}  {reasons}")
    return lines


def _known(backup: Backup) -> list[str]:
    return ["damaged"] if not backup.good else ["verified"] if backup.verified else []


def _source_body(judged: Judged, gone: list[str]) -> dict[str, Any]:
    plan: Plan = judged.plan
    return {
        "source": judged.source,
        "frozen": list(plan.frozen),
        "expired": gone,
        "backups": [
            {
                "id": row.backup.id,
                "time": row.backup.time.isoformat(),
                "stored": None if row.backup.stored is None else row.backup.stored.isoformat(),
                "size": row.backup.size,
                "verified": row.backup.verified,
                "damaged": not row.backup.good,
                "stays": row.stays,
                "reasons": list(row.reasons),
                "until": None if row.until is None else row.until.isoformat(),
            }
            for row in plan.rows
        ],
    }


def _frozen(frozen: dict[str, tuple[str, ...]]) -> Refused:
    source, reasons = next(iter(frozen.items()))
    more = f"; and {len(frozen) - 1} more sources" if len(frozen) > 1 else ""
    return Refused(
        f"Nothing of {show_text(source)} may be deleted now: {reasons[0]}{more}.",
        means="Every backup stays. Nothing is deleted while that is so.",
        do="Find out why first. A backup of the usual size, or the right time, lifts it.",
    )


def _prune_lines(done: Pruned, log: dict[str, Any], *, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [
        f"{len(done.swept)} expired backups {would}swept",
        f"{done.dead} packs ({show_size(done.dead_size)}) {would}deleted, {done.repacked} packs "
        f"({show_size(done.repacked_size)}) {would}repacked into {show_size(done.moved_size)}",
        f"{show_size(done.freed)} {would}given back of {show_size(done.size_before)}; "
        f"{show_size(done.waste)} stay beside what is relied on",
    ]
    if log["files"]:
        lines.append(f"WAL: {log['files']} files ({show_size(log['size'])}) {would}deleted")
    if log["skipped"]:
        lines.append(f"WAL: none is deleted. {show_text(log['skipped'])}")
    if done.resumed:
        lines.insert(0, f"generation {done.generation}, which had stopped half-way, was finished")
    return lines


def _prune_body(done: Pruned) -> dict[str, Any]:
    return {
        "generation": done.generation,
        "resumed": done.resumed,
        "swept": done.swept,
        "packs": {"before": done.packs_before, "deleted": done.dead, "repacked": done.repacked},
        "freed": done.freed,
        "size_before": done.size_before,
        "waste": done.waste,
        "kept": done.kept,
    }
