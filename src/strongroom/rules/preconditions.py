"""What must be so before a backup or a restore: facts in, a verdict with cause and remedy out. PURE.

Rule: a verdict says what was found, and where it is not ok, what it leads to and what to do. What nobody
could find out is `unknown`, never ok. How the facts are had is no matter of this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from strongroom.rules.sizes import show_seconds, show_size

Verdict = Literal["ok", "warning", "failed", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warning", "failed", "unknown")

CLOCK_WARN, CLOCK_FAIL = 60.0, 900.0  # seconds
ROOM_WARN, ROOM_FAIL = 5 << 30, 256 << 20  # bytes
SPACE_LEFT = 0.2  # of a disk
KIT_TRIED = timedelta(days=366)
CHANNEL_TRIED = timedelta(days=93)
KEY_AGE = timedelta(days=366)
_TLS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


@dataclass(frozen=True, slots=True)
class Finding:
    """One precondition: what was looked at, how it stands, what was found and why, what to do."""

    item: str
    verdict: Verdict
    what: str
    do: str = ""

    def as_json(self) -> Mapping[str, str]:
        """JSON values."""
        return {"item": self.item, "verdict": self.verdict, "what": self.what, "do": self.do}


def ok(item: str, what: str) -> Finding:
    """As it must be."""
    return Finding(item, "ok", what)


def count(number: int, word: str) -> str:
    """So many of them, in words."""
    return f"{number:,} {word}{'s' * (number != 1)}"


# -- disks, clocks -----------------------------------------------------------------------------


def room(item: str, free: int | None, total: int | None, *, place: str = "") -> Finding:
    """How much room is left; `free` and `total` in bytes, None where that is not told."""
    if free is None:
        return ok(item, f"{place}does not tell how much room it has".strip())
    text = f"{place}{show_size(free)} free"
    if total:
        text += f" of {show_size(total)} ({100 * free // total} %)"
    if free < ROOM_FAIL:
        return Finding(item, "failed", text, "Free space, or use a larger disk.")
    if free < ROOM_WARN or (total and free < SPACE_LEFT * total):
        return Finding(item, "warning", text, "Free space before the next backups need it.")
    return ok(item, text)


def clock(item: str, apart: float | None, whose: str, *, doubt: float = 0.0) -> Finding:
    """This machine's clock against another; `apart` is how much that one is ahead, in seconds."""
    if apart is None:
        return ok(item, f"{whose} tells no time")
    if abs(apart) - doubt < CLOCK_WARN:
        return ok(item, f"this machine's clock and {whose}'s agree")
    where = "ahead of" if apart < 0 else "behind"
    return Finding(
        item,
        "failed" if abs(apart) - doubt >= CLOCK_FAIL else "warning",
        f"this machine's clock is {show_seconds(abs(apart))} {where} {whose}'s: ages, schedules and"
        " moments to restore to are told wrong, and signed requests are refused",
        "Set both by NTP (`timedatectl set-ntp true`), and look which one is right (`date -u`).",
    )


# -- storage -----------------------------------------------------------------------------------


def capabilities(
    found: Mapping[str, bool], recorded: Mapping[str, bool], *, probed: bool
) -> Finding:
    """What the store can do: now (`probed`), else as `init` found it."""
    item = "storage capabilities"
    words = {
        "put_if_absent": "creates a name once",
        "read_after_write": "shows what was written",
        "list_sorted": "lists in order",
    }
    lost = [words[one] for one, can in recorded.items() if can and not found.get(one)]
    if lost:
        return Finding(
            item,
            "failed",
            f"when the repository was made the store could do what it cannot any more: {', '.join(lost)}",
            "Something between here and the store changed (a gateway, a mount, a version): bring it back,"
            " or copy the repository to another store.",
        )
    cannot = [words[one] for one, can in found.items() if not can and one != "list_sorted"]
    when = "" if probed else " (as found at `init`: here nothing can be deleted again)"
    if cannot:
        return Finding(
            item,
            "warning",
            f"the store does not promise that it {', '.join(cannot)}{when}: several writers at once are"
            " told apart by looking again, which is slower",
            "Use a store with conditional writes where several hosts back up into one repository.",
        )
    return ok(item, f"{', '.join(words[one] for one in found if found[one])}{when}")


def versions(kept: str | None, locked: str | None, *, kind: str, why: str = "") -> Finding:
    """Whether a bucket keeps what is overwritten or deleted. `kept` and `locked` are the store's own words,
    "" for off, None where it was not told, for which `why` is the reason."""
    item = "storage versions"
    if kind == "file":
        return ok(item, "a folder: nothing but its rights keeps somebody from deleting it")
    if kept is None:
        return Finding(item, "unknown", f"whether deleted objects are kept is not known: {why}")
    if kept != "Enabled":
        return Finding(
            item,
            "warning",
            "the bucket keeps no versions: who has the credentials can delete every backup for good",
            "Turn versioning on (and object lock, for a retention that nobody shortens), or give the"
            " hosts that back up credentials that may not delete.",
        )
    lock = f"object lock {locked}" if locked else "no object lock"
    return ok(item, f"deleted objects are kept as versions; {lock}")


def endpoint(url: str, *, near: bool, version: str | None, why: str = "") -> Finding:
    """How a store is reached; `version` is of TLS, as negotiated."""
    item = "storage TLS"
    if not url.startswith("https:"):
        if near:
            return ok(item, f"{url}: on this machine")
        return Finding(
            item,
            "failed",
            f"{url} is not encrypted on its way: object names and credentials' signatures can be read and"
            " requests be held back (contents are encrypted by the repository)",
            "Use an https:// endpoint, and take `allow_http` away.",
        )
    if version is None:
        return Finding(item, "unknown", f"which TLS {url} speaks is not known: {why}")
    if version != "TLSv1.3":
        return Finding(
            item,
            "failed",
            f"{url} negotiated {version}; TLS 1.3 is promised for transfers",
            "Turn TLS 1.3 on at the store, or at what stands in front of it.",
        )
    return ok(item, f"{url} negotiated {version}")


# -- keys --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A key slot; `created` is when it was made, None for a damaged one, as is its kind."""

    label: str
    kind: str
    role: str
    created: datetime | None
    damaged: bool = False


KIT = "recovery-code"


def holders(slots: Sequence[Holder]) -> Finding:
    """Whether losing one secret, or this machine, loses everything."""
    item = "key holders"
    damaged = sum(one.damaged for one in slots)
    readers = [one for one in slots if one.role == "reader" and not one.damaged]
    named = ", ".join(f"{one.label} ({one.kind})" for one in readers)
    if damaged:
        return Finding(
            item,
            "failed",
            f"{damaged} of {len(slots)} key slots are damaged; these open it still: {named or 'none'}",
            "Bring them back from a copy of the repository, or add new ones: `strongroom key add`.",
        )
    if len(readers) < 2:
        return Finding(
            item,
            "failed",
            f"only one key opens the repository: {named or 'none'}; who loses it loses every backup",
            "Add a second: `strongroom key add recovery-kit --new-recovery-code`, printed and kept away"
            " from here.",
        )
    if not any(one.kind == KIT for one in readers):
        return Finding(
            item,
            "warning",
            f"no recovery kit: {named} may all be lost with this machine or account",
            "Make one and print it: `strongroom key add recovery-kit --new-recovery-code`.",
        )
    return ok(item, f"{len(readers)} readers, a recovery kit among them: {named}")


def kit(slots: Sequence[Holder], tried: datetime | None, *, now: datetime) -> Finding | None:
    """Whether somebody has tried the recovery kit; None where there is none."""
    made = [one.created for one in slots if one.kind == KIT and one.created is not None]
    if not made:
        return None
    item = "recovery kit"
    do = "Take the printed page and run `strongroom key kit --test`; put it back where it is kept."
    newest = max(made)
    if tried is None or tried < newest:
        when = "" if tried is None else f" since it was made {newest:%Y-%m-%d}"
        return Finding(
            item, "warning", f"nobody has tried it{when}: it may be misprinted or lost", do
        )
    if now - tried > KIT_TRIED:
        return Finding(item, "warning", f"it was tried last {_ago(tried, now)}", do)
    return ok(item, f"it was tried {_ago(tried, now)}")


def key_ages(slots: Sequence[Holder], *, now: datetime, limit: timedelta = KEY_AGE) -> Finding:
    """Whether keys are old."""
    item = "key ages"
    aged = [(one.created, one.label) for one in slots if one.created is not None]
    if not aged:
        return Finding(item, "unknown", "no key tells when it was made")
    old = [f"{label} ({_ago(made, now)})" for made, label in sorted(aged) if now - made > limit]
    if old:
        return Finding(
            item,
            "warning",
            f"older than {limit.days} days: {', '.join(old)}",
            "Add a new one and take the old one away: `strongroom key add NAME`, then `strongroom key"
            " remove OLD`.",
        )
    made, label = min(aged)
    return ok(item, f"the oldest is {label}, made {_ago(made, now)}")


# -- what is to happen by itself ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobState:
    """A job: how it stands by its schedule, since when something is due, when it last ran."""

    name: str
    state: str  # due, catch-up, missed, running, overrun, waiting
    due: datetime
    last: datetime | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Unscheduled:
    """A source without a schedule: when it was backed up last, and how often that is promised."""

    name: str
    last: datetime | None = None
    rpo: timedelta | None = None

    def runs(self, now: datetime) -> bool:
        """Whether something else seems to back it up: a crontab of one's own."""
        return self.last is not None and now - self.last <= (self.rpo or _DAILY)


_PATIENCE = timedelta(hours=1)
_DAILY = timedelta(hours=36)


def schedule(
    jobs: Sequence[JobState], unscheduled: Iterable[Unscheduled], *, now: datetime
) -> Finding:
    """Whether jobs are configured, and something runs them."""
    item = "schedule"
    without = sorted(one.name for one in unscheduled if not one.runs(now))
    do = (
        'Write `schedule = "0 2 * * *"` under each source, and run `strongroom schedule systemd` (or'
        " cron, kubernetes) for what makes it run."
    )
    late = [
        one
        for one in jobs
        if one.state in ("missed", "overrun")
        or (one.state in ("due", "catch-up") and now - one.due > _PATIENCE)
    ]
    last = max((one.last for one in jobs if one.last is not None), default=None)
    hosts = sorted({one.host for one in jobs if one.host})
    ran = f"; the last job ran {_ago(last, now)}" if last else "; no job ever ran"
    ran += f" on {', '.join(hosts)}" if hosts else ""
    if late:
        named = ", ".join(
            f"{one.name} ({one.state} since {one.due:%Y-%m-%d %H:%M})" for one in late
        )
        return Finding(
            item,
            "failed",
            f"{len(late)} of {count(len(jobs), 'job')} did not run when it was to: {named}{ran}",
            "Look whether something runs them (`systemctl list-timers`, `crontab -l`), and"
            " `strongroom run-due --list`; `strongroom schedule systemd` prints what does.",
        )
    known = f"{count(len(jobs), 'job')} in order{ran}" if jobs else "nothing is scheduled here"
    if without:
        named = ", ".join(without)
        return Finding(
            item,
            "warning",
            f"{known}; backed up only when somebody thinks of it: {named}",
            do,
        )
    if not jobs:
        return ok(item, f"{known}; something else backs every source up, the last time as promised")
    return ok(item, known)


def channels(
    names: Sequence[str], pings: Sequence[str], tried: Mapping[str, datetime], *, now: datetime
) -> Finding:
    """Whether anybody hears of a failure. `tried`: when a channel last took a test."""
    item = "notifications"
    if not names:
        return Finding(
            item,
            "warning",
            "nobody is told when something fails",
            "Name who is told as [notify.NAME] in strongroom.toml, then `strongroom notify test`.",
        )
    never = [name for name in names if name not in tried]
    old = [name for name in names if name in tried and now - tried[name] > CHANNEL_TRIED]
    if never or old:
        words = []
        if never:
            words.append(f"never taken a test: {', '.join(never)}")
        if old:
            words.append(f"not for {CHANNEL_TRIED.days} days: {', '.join(old)}")
        return Finding(item, "warning", "; ".join(words), "Run `strongroom notify test`.")
    silent = (
        "" if pings else '; no dead man\'s switch ([notify.NAME] type = "ping") tells of silence'
    )
    oldest = min(tried[name] for name in names)
    return ok(item, f"{', '.join(names)} took a test {_ago(oldest, now)}{silent}")


def audit(size: int, faults: Sequence[str], unread: Sequence[str]) -> Finding:
    """Whether the audit log is whole."""
    item = "audit log"
    if faults:
        return Finding(
            item,
            "failed",
            f"it is not as it was written: {faults[0]}"
            + (f", and {len(faults) - 1} more" if len(faults) > 1 else ""),
            "Run `strongroom audit verify`, and find out who changed the repository.",
        )
    if unread:
        return Finding(item, "unknown", f"{len(unread)} parts could not be read: {unread[0]}")
    return ok(item, f"{count(size, 'run')}, whole")


def mounting(fault: str | None) -> Finding:
    """Whether `open` can serve a backup without restoring it."""
    if fault is None:
        return ok("open", "/dev/fuse is there: a backup can be opened without a restore")
    return Finding(
        "open",
        "warning",
        f"a backup cannot be opened without a restore: {fault}",
        "Load the kernel's module (`modprobe fuse`) and let this account open /dev/fuse; in a container"
        " give it the device. Without it, `restore` does the same, in longer time.",
    )


# -- a server ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself. `settings` are those that could be asked for; sizes as PostgreSQL
    counts them. `senders` and `slots` are those in use."""

    version: str
    major: int
    standby: bool
    settings: Mapping[str, str]
    senders: int = 0
    slots: int = 0

    def number(self, name: str) -> int | None:
        """A setting as a number; None where it was not told."""
        text = self.settings.get(name, "")
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else None

    def off(self, name: str) -> bool:
        """Whether a setting is known to be off."""
        return self.settings.get(name) == "off"


Method = Literal["logical", "local", "stream"]


def durability(item: str, server: Server) -> list[Finding]:
    """fsync, full_page_writes, checksums, and settings that hide damage."""
    found = []
    for name, leads in (
        ("fsync", "a crash of the machine damages the cluster, and the backup holds the damage"),
        (
            "full_page_writes",
            "a crash leaves torn pages, and a standby of it cannot be backed up",
        ),
    ):
        if server.off(name):
            found.append(
                Finding(
                    f"{item} {name}",
                    "failed",
                    f"{name} is off: {leads}",
                    f"Set {name} = on and reload the server.",
                )
            )
    for name in ("zero_damaged_pages", "ignore_checksum_failure", "ignore_invalid_pages"):
        if server.settings.get(name) == "on":
            found.append(
                Finding(
                    f"{item} {name}",
                    "failed",
                    f"{name} is on: damaged pages are read as if they were whole, by pg_dump too",
                    f"Set {name} = off; it is for rescuing what is left, and for no other time.",
                )
            )
    if server.off("data_checksums"):
        found.append(
            Finding(
                f"{item} checksums",
                "warning",
                "it has no page checksums: damage on its disk is backed up unseen",
                "Turn them on with `pg_checksums --enable` when the server is down.",
            )
        )
    if found:
        return found
    if "fsync" not in server.settings:
        return [Finding(f"{item} durability", "unknown", "the role may not ask for settings")]
    return [ok(f"{item} durability", "fsync, full page writes and page checksums are on")]


def replication(
    item: str, server: Server, method: Method, *, receives: bool, archives: bool
) -> list[Finding]:
    """wal_level, room for connections and slots: what a physical backup or a receiver needs."""
    if method == "logical" and not receives:
        return []
    found = []
    level = server.settings.get("wal_level")
    if level == "minimal":
        found.append(
            Finding(
                f"{item} wal_level",
                "failed",
                "wal_level is minimal: the log cannot be recovered from, and no physical backup is taken",
                "Set wal_level = replica and restart the server.",
            )
        )
    streams = method == "stream" or receives
    wanted = (method == "stream") + receives
    limit = server.number("max_wal_senders")
    if streams and limit is not None and limit - server.senders < wanted:
        here = f"max_wal_senders is {limit}, {server.senders} in use"
        found.append(
            Finding(
                f"{item} max_wal_senders",
                "failed" if limit == 0 else "warning",
                f"{here}: it needs {wanted} more to stream by",
                f"Set max_wal_senders = {max(10, server.senders + wanted + 2)} and restart the server.",
            )
        )
    slots = server.number("max_replication_slots")
    keeps = streams or not archives
    if keeps and slots is not None and slots - server.slots < 1 and not (receives and server.slots):
        found.append(
            Finding(
                f"{item} max_replication_slots",
                "failed" if receives else "warning",
                f"max_replication_slots is {slots}, {server.slots} in use: no slot is left that keeps the"
                " log until it is here",
                f"Set max_replication_slots = {max(10, server.slots + 3)} and restart the server.",
            )
        )
    if found:
        return found
    if level is None:
        return [Finding(f"{item} wal_level", "unknown", "the role may not ask for settings")]
    words = f"wal_level is {level}"
    if streams and limit is not None:
        words += f"; {server.senders} of {limit} wal senders in use"
    return [ok(f"{item} wal_level", words)]


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A replication slot; sizes in bytes, `limit` None for none. `timeout` is how long the server lets a
    slot be idle before it gives it up, "0" for ever."""

    name: str
    active: bool
    status: str
    held: int
    limit: int | None
    trouble: str | None = None
    timeout: str = "0"


def slot(item: str, facts: SlotFacts | None, *, source: str, wanted: bool) -> Finding | None:
    """Whether the log is kept until it is here, and whether that may fill the server's disk."""
    item = f"{item} slot"
    if facts is None:
        if not wanted:
            return None
        return Finding(
            item,
            "failed",
            "the replication slot that is configured is not there: the server removes log before it is"
            " received",
            f"Run `strongroom wal receive {source} --create-slot`, then a new backup.",
        )
    limit = "none" if facts.limit is None else show_size(facts.limit)
    again = f"`strongroom wal receive {source}`"
    if facts.status == "lost":
        return Finding(
            item,
            "failed",
            f"{facts.name} is lost: the server removed log that it was to keep"
            f" (max_slot_wal_keep_size: {limit}); what was not received is gone",
            f"{again[:-1]} --drop-slot`, {again[:-1]} --create-slot`, then a new backup; raise"
            " max_slot_wal_keep_size.",
        )
    if facts.status == "unreserved":
        return Finding(
            item,
            "failed",
            f"{facts.name} is about to be lost: the server removes its log at the next checkpoint"
            f" (max_slot_wal_keep_size: {limit})",
            f"Start {again} again at once; raise max_slot_wal_keep_size.",
        )
    text = f"{facts.name} {'is read' if facts.active else 'is not read by anybody'}, holds back"
    text += f" {show_size(facts.held)}; max_slot_wal_keep_size: {limit}"
    if facts.trouble is not None:
        return Finding(
            item,
            "warning",
            f"{facts.name}: {facts.trouble}",
            f"Start {again} again, or remove the slot with --drop-slot; set max_slot_wal_keep_size so"
            " that a slot cannot fill the disk.",
        )
    if not facts.active:
        return Finding(
            item, "warning", text, f"Start {again} again, or remove the slot with --drop-slot."
        )
    if facts.limit is None:
        return Finding(
            item,
            "warning",
            f"{text}: when nobody reads it, it fills the server's disk",
            "Set max_slot_wal_keep_size to what the disk of pg_wal has room for.",
        )
    if facts.timeout not in ("", "0"):
        return Finding(
            item,
            "warning",
            f"{text}; idle_replication_slot_timeout gives it up after {facts.timeout} s without a reader",
            "Set idle_replication_slot_timeout = 0, or longer than a receiver may be away.",
        )
    return ok(item, text)


# -- on its way --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connection:
    """How a database is reached. `near`: it never leaves this machine. `version` is of TLS, None for a
    connection without; `least` is what the dsn demands, `server_least` what the server does."""

    near: bool
    version: str | None
    cipher: str = ""
    mode: str = "prefer"
    least: str = ""
    server_least: str = ""


def transfer(item: str, facts: Connection) -> Finding:
    """TLS 1.3 and a server that has proved who it is, for all that leaves this machine."""
    item = f"{item} TLS"
    if facts.near:
        how = f"negotiated {facts.version}" if facts.version else "not encrypted"
        return ok(item, f"{how}, and does not leave this machine")
    demand = "sslmode=verify-full and ssl_min_protocol_version=TLSv1.3"
    if facts.version is None:
        return Finding(
            item,
            "failed",
            "the connection is not encrypted: passwords' proofs and all data can be read on their way",
            f"Set ssl = on at the server with a certificate, hostssl in pg_hba.conf, and {demand} in the"
            " dsn.",
        )
    negotiated = f"negotiated {facts.version}{f', {facts.cipher}' if facts.cipher else ''}"
    if _rank(facts.version) < _rank("TLSv1.3"):
        lower = f" (ssl_min_protocol_version of the server: {facts.server_least or 'not told'})"
        return Finding(
            item,
            "failed",
            f"{negotiated}{lower}; TLS 1.3 is promised for transfers",
            "Let the server speak TLS 1.3: ssl_max_protocol_version = '' and OpenSSL 1.1.1 or newer"
            f" there; then {demand} in the dsn.",
        )
    if facts.mode != "verify-full":
        return Finding(
            item,
            "failed",
            f"{negotiated}, but sslmode is {facts.mode}: nobody has proved that the server is the one"
            " that is meant, so that somebody in between can read everything",
            "Write sslmode=verify-full into the dsn, and sslrootcert with the certificate of the"
            " authority (or sslrootcert=system).",
        )
    if _rank(facts.least) < _rank("TLSv1.3") and _rank(facts.server_least) < _rank("TLSv1.3"):
        return Finding(
            item,
            "warning",
            f"{negotiated}, verified; nothing demands TLS 1.3, so that an older one may be negotiated"
            " some day",
            "Write ssl_min_protocol_version=TLSv1.3 into the dsn, or into postgresql.conf.",
        )
    return ok(item, f"{negotiated}, verified, and demanded")


def _rank(version: str) -> int:
    return _TLS.index(version) if version in _TLS else -1


# -- what is in a database ---------------------------------------------------------------------


def collations(item: str, stale: Sequence[str]) -> Finding:
    """`stale` name what was sorted by another version of the system's library than is there now."""
    if stale:
        return Finding(
            f"{item} collations",
            "warning",
            f"sorted by another version of the library than is installed: {', '.join(stale)}; indexes on"
            " text may be wrong, and a physical backup brings them back as they are",
            "REINDEX what uses them, then ALTER DATABASE … REFRESH COLLATION VERSION.",
        )
    return ok(f"{item} collations", "as the installed libraries sort")


def extensions(item: str, missing: Sequence[str], installed: Sequence[str]) -> Finding:
    """`missing` are extensions of the database whose files the server does not have (any more)."""
    if missing:
        return Finding(
            f"{item} extensions",
            "warning",
            f"their files are not installed on the server: {', '.join(missing)}; a restore there fails",
            "Install them on the server, and wherever it is to be restored to.",
        )
    named = ", ".join(installed) or "none"
    return ok(f"{item} extensions", f"{named}; a restore needs the same where it restores to")


def tools(
    item: str, major: int | None, safe: Sequence[tuple[int, int]], unsafe: Sequence[str]
) -> Finding:
    """Client programs: (major, minor) of those that are safe to use, words for the others."""
    item = f"{item} tools"
    install = 'Install the newest PostgreSQL client tools, or `pip install "strongroom[demo]"`.'
    aside = f"; not used, for published vulnerabilities: {', '.join(unsafe)}" if unsafe else ""
    shown = ", ".join(f"{one[0]}.{one[1]}" for one in safe)
    if not safe:
        return Finding(item, "failed", f"no pg_dump that is safe to use{aside}", install)
    if major is not None and all(one[0] < major for one in safe):
        return Finding(
            item,
            "failed",
            f"the server is PostgreSQL {major}, and pg_dump {shown} is too old for it{aside}",
            install,
        )
    return ok(item, f"pg_dump {shown}{aside}")


def rights(
    item: str, missing: Sequence[str], excess: Sequence[str], unread: Sequence[str], *, source: str
) -> Finding:
    """What the role of a source has, against what it needs."""
    item = f"{item} rights"
    if missing:
        return Finding(
            item,
            "failed",
            f"missing: {'; '.join(missing)}",
            f"Run what `strongroom source grants {source} --sql` prints, as a superuser.",
        )
    if excess:
        return Finding(
            item,
            "warning",
            f"more than it needs: {'; '.join(excess)}",
            f"`strongroom source grants {source}` prints a role of its own, and how to take away the rest.",
        )
    if unread:
        return Finding(item, "unknown", f"could not be looked into: {', '.join(unread)}")
    return ok(item, "what it needs, and no more")


def _ago(moment: datetime, now: datetime) -> str:
    return f"{show_seconds(max(0.0, (now - moment).total_seconds()))} ago"
