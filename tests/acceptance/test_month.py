"""A month in minutes: real servers, the command, its schedule; only the wall clock is moved.

PostgreSQL 16 archives its log and is backed up physically every night, a database of it logically, a
vault monthly; everything by `run-due`, as cron would start it. The store is an S3 server with a clock
of its own, which is the moved one too, for a folder's times are the kernel's. Mail and HTTP arrive
at servers that take them. The clock is moved for programs by `tests/moved_clock.c`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from psycopg.conninfo import conninfo_to_dict

from observe.servers import Web
from postgres.cluster_room import Restored
from postgres.wal.room import SETTINGS, WHERE, WalRoom, program, ready, until
from servers import S3Server
from strongroom.errors import NotFound
from strongroom.format.audit import leaf_name
from strongroom.postgres.embedded import EmbeddedServer, find_server
from strongroom.storage.faulty import flip

pytestmark = [pytest.mark.sweep, pytest.mark.xdist_group("month")]

START = datetime(2027, 12, 30, 0, 30, tzinfo=UTC)
DAYS = int(os.environ.get("MONTH_DAYS", "34"))
DAY = timedelta(days=1)
CONFIG = """\
[repository]
url = "s3://month/repository"
key_file = "{room.key}"

[repository.s3]
endpoint = "{endpoint}"
region = "us-east-1"
access_key_id = "env:KEY_ID"
secret_access_key = "env:KEY_SECRET"

[schedule]
check = "30 4 * * sun"
expire = "0 5 * * *"

[notify.mail]
type = "smtp"
host = "127.0.0.1"
port = {mail}
tls = "none"
sender = "backup@example.com"
to = ["devops@example.com"]

[notify.pager]
type = "pagerduty"
routing_key = "env:PAGER_KEY"
url = "{web}/enqueue"
level = "warning"

[notify.deadman]
type = "ping"
url = "env:DEADMAN"

[source.db]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=postgres sslmode=disable"
password = "file:{room.root}/password"
method = "physical"
via = "local"
schedule = "0 2 * * *"
promise = {{ rpo = "26h", rto = "4h" }}
retention = {{ pitr = "7d", minimum = 2 }}

[source.app]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=app sslmode=disable"
password = "file:{room.root}/password"
schedule = "30 2 * * *"
promise = {{ rpo = "26h", rto = "4h", keep = "30d" }}

[source.vault]
type = "files"
path = "{room.root}/vault"
schedule = "0 3 1 * *"
promise = {{ rpo = "32d", rto = "24h", keep = "12 months" }}
"""


class MovedClock:
    """The wall clock of every program that runs with `environ`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: the clock cannot be moved")
        library, self._file = folder / "moved_clock.so", folder / "moved"
        source = Path(__file__).parent.parent / "moved_clock.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        self._file.write_bytes(bytes(8))
        self.environ = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(self._file)}

    def to(self, moment: datetime) -> None:
        """It is `moment` now, and the clock goes on from there; never back."""
        by = int((moment - datetime.now(UTC)).total_seconds() * 1e9)
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", by))


class MovedServer(EmbeddedServer):
    """A PostgreSQL under the moved clock."""

    clock: MovedClock

    def _environment(self) -> dict[str, str]:
        return (
            super()._environment() | self.clock.environ | {"KEY_ID": "month", "KEY_SECRET": "month"}
        )


class MovedRestored(Restored):
    """A restored cluster, started by its owner under the same clock."""

    def __init__(self, original: MovedServer, data: Path) -> None:
        super().__init__(original, data, {})
        self._clock = original.clock

    def _environment(self) -> dict[str, str]:
        return (
            super()._environment()
            | self._clock.environ
            | {"KEY_ID": "month", "KEY_SECRET": "month"}
        )


class Mailbox:
    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        import email  # noqa: PLC0415
        from email import policy  # noqa: PLC0415

        message = email.message_from_bytes(envelope.content, policy=policy.default)
        self.subjects.append(str(message["Subject"]))
        return "250 OK"


class Month:
    """The servers and the command, at the same moved time."""

    def __init__(
        self, room: WalRoom, clock: MovedClock, server: MovedServer, web: Web, mailbox: Mailbox
    ) -> None:
        self.room, self.clock, self.server = room, clock, server
        self.web, self.mailbox, self.endpoint = web, mailbox, ""
        self.random = random.Random(7)
        self.runs: list[tuple[datetime, int, str]] = []
        self.made: dict[str, tuple[str, datetime]] = {}

    def run(self, *words: str, status: int | None = 0) -> tuple[int, bytes, str]:
        return self.room.run(*words, "--config", str(self.room.config), status=status)

    def json(self, *words: str, status: int | None = 0) -> dict[str, Any]:
        said = self.run(*words, "--json", status=status)[1]
        whole = said if said.startswith(b"{\n") else said.splitlines()[-1]
        found: dict[str, Any] = json.loads(whole)
        return found

    def sql(self, statement: str, database: str = "postgres") -> Any:
        with self.server.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchone() if cursor.description else None

    def look(self) -> None:
        """Remember what is there: a backup stays for days at least."""
        for one in self.json("list")["snapshots"]:
            self.made[one["id"]] = (one["source"], datetime.fromisoformat(one["time"]))

    def paged(self, action: str) -> Counter[str]:
        """How often each key was told to PagerDuty: "trigger" without reminders, or "resolve"."""
        events = [body for verb, path, body in self.web.asked if path == "/enqueue"]
        return Counter(
            one["dedup_key"].split("/", 2)[2]
            for one in events
            if one["event_action"] == action and "Still:" not in json.dumps(one)
        )

    def due(self, moment: datetime) -> int:
        """What cron does at a moment: `run-due`."""
        self.clock.to(moment)
        status, _, said = self.run("run-due", status=None)
        self.runs.append((moment, status, said))
        return status


@pytest.fixture
def month() -> Iterator[Month]:
    try:
        installation = find_server(16)
    except NotFound:
        pytest.skip(f"no PostgreSQL 16 here: {WHERE[16]}")
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    room = WalRoom()
    room.root.chmod(0o755)
    clock = MovedClock(room.root)
    clock.to(START)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with open(room.root / "moto.log", "wb") as log:
        store = subprocess.Popen(command, env=os.environ | clock.environ, stdout=log, stderr=log)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        until(lambda: answers(endpoint))
        room.environ |= {**clock.environ, "KEY_ID": "month", "KEY_SECRET": "month"}
        settings = SETTINGS | {
            "archive_command": room.archive_command(),
            "wal_level": "replica",
            "full_page_writes": "on",
            "wal_keep_size": "0",
        }
        server = MovedServer(
            installation, durable=False, settings=settings,
            initdb=["--wal-segsize=1", "--data-checksums"],
        )  # fmt: skip
        server.clock = clock
        parts = {key: str(value) for key, value in conninfo_to_dict(server.dsn).items()}
        password = room.root / "password"
        password.write_text(parts.pop("password"))
        password.chmod(0o600)
        (room.root / "vault").mkdir()
        for number in range(20):
            (room.root / f"vault/{number}.json").write_text(f'{{"number": {number}}}')
        for path in (room.root, password, room.root / "vault"):
            os.chown(path, room.account.uid, room.account.gid)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        mailbox, web = Mailbox(), Web()
        web.status = 202
        post = Controller(mailbox, hostname="127.0.0.1", port=port)
        post.start()
        room.environ |= {"PAGER_KEY": "0" * 32, "DEADMAN": f"{web.url}/alive"}
        text = CONFIG.format(room=room, endpoint=endpoint, mail=port, web=web.url, **parts)
        room.config.write_text(text)
        room.init()
        room.environ["STRONGROOM_PROGRAM"] = program()
        room.daemon()
        with server:
            month = Month(room, clock, server, web, mailbox)
            month.endpoint = endpoint
            yield month
        post.stop()
    finally:
        store.kill()
        store.wait()
        room.close()


def answers(endpoint: str) -> bool:
    """Whether the store is there; makes the bucket."""
    try:
        urllib.request.urlopen(
            urllib.request.Request(f"{endpoint}/month", method="PUT"), timeout=5
        ).close()
    except OSError:
        return False
    return True


def test_a_month(month: Month) -> None:
    month.sql("CREATE TABLE ledger (n serial, at timestamptz DEFAULT clock_timestamp())")
    month.sql("CREATE DATABASE app")
    month.sql("CREATE TABLE orders (n int, text text)", "app")
    month.sql(REFILL, "app")
    commits: list[datetime] = []
    told: Counter[str] = Counter()
    for number in range(DAYS):
        day = START.replace(hour=0, minute=0) + number * DAY
        if number in (13, 14):  # the host that runs jobs is off; the database is not
            continue
        times = [day + timedelta(hours=2, seconds=20), day + timedelta(hours=2.5, seconds=20)]
        times += [day + timedelta(hours=3, seconds=20)] * (day.day == 1)
        times += [day + timedelta(hours=4.5, seconds=20)] * (day.weekday() == 6)
        times += [day + timedelta(hours=5, seconds=20)]
        for moment in times:
            month.due(moment)
            commits.append(month.sql("INSERT INTO ledger DEFAULT VALUES RETURNING at")[0])
        month.look()
        told.update(befall(month, number))
        month.sql("SELECT pg_switch_wal()")
        if number not in BROKEN_ARCHIVE:
            until(lambda: not ready(month.server))
    last = month.runs[-1][0]  # when expire decided
    assert last.hour == 5
    print([(f"{at:%m-%d %H:%M}", status) for at, status, _ in month.runs if status])
    print(month.paged("trigger"), month.paged("resolve"), month.mailbox.subjects, sep="\n")
    assert_kept(month, last)
    assert_moments(month, commits, last)
    assert_log(month)
    assert month.paged("trigger") == told
    assert month.paged("resolve") == told
    assert not told or any("ixed" in one for one in month.mailbox.subjects)
    assert sum(path == "/alive" for _, path, _ in month.web.asked) >= DAYS


REFILL = "INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(1, 20000) n"
BROKEN_ARCHIVE = range(24, 26)


def befall(month: Month, number: int) -> list[str]:
    """What happens on the evening of a day, and what is to be told of it."""
    if number == 3:
        month.sql("ALTER DATABASE app RENAME TO away")
        return ["backup-failed/app", "backup-late/app"]
    if number == 4:
        month.sql("ALTER DATABASE away RENAME TO app")
    if number == 9:
        month.sql("TRUNCATE orders", "app")
        return ["size/app", "deletion-frozen/app"]
    if number == 10:
        month.sql(REFILL, "app")
    if number == 12:
        missed = ["backup-missed/app", "backup-missed/db", "backup-late/app"]
        return [*missed, "wal-stale/db", "deletion-frozen/db"]
    if number == 18:
        month.sql("ALTER DATABASE app RENAME TO away")
        month.web.status = 500
        return ["backup-failed/app", "backup-late/app"]
    if number == 19:
        month.web.status = 202
    if number == 20:
        month.sql("ALTER DATABASE away RENAME TO app")
    if number in (BROKEN_ARCHIVE.start, BROKEN_ARCHIVE.stop):
        command = "false" if number in BROKEN_ARCHIVE else month.room.archive_command()
        quoted = command.replace("'", "''")
        month.sql(f"ALTER SYSTEM SET archive_command = '{quoted}'")
        month.sql("SELECT pg_reload_conf()")
    return []  # every night's base has its own log: nothing is stale


def assert_kept(month: Month, now: datetime) -> None:
    """What each policy demands, by dates alone."""
    month.look()
    kept = {one["id"] for one in month.json("list")["snapshots"]}
    made = {
        name: sorted((at, id) for id, (source, at) in month.made.items() if source == name)
        for name in ("db", "app", "vault")
    }
    app = {id for at, id in made["app"] if at + 30 * DAY > now}
    # The bases of seven days, and the one from which the oldest of its moments is recovered.
    opens = now - 7 * DAY
    base = {id for at, id in made["db"] if at > opens}
    base |= {
        id for at, id in made["db"] if at <= opens and (at, id) >= max_before(made["db"], opens)
    }
    assert kept == app | base | {id for _, id in made["vault"]}
    assert [at.day for at, _ in made["vault"]] == [1] * len(made["vault"])
    nights = {at.date() for at, _ in made["app"]}
    assert len(nights) == DAYS - sum(number < DAYS for number in (4, 13, 14, 19, 20))
    assert "no damage found" in month.run("check", "--read-data")[1].decode()


def max_before(made: list[tuple[datetime, str]], moment: datetime) -> tuple[datetime, str]:
    """The newest that was made until a moment."""
    return max((one for one in made if one[0] <= moment), default=(moment, ""))


def assert_moments(month: Month, commits: list[datetime], now: datetime) -> None:
    """Moments drawn from the seven days are recovered to the row; one from before them is not."""
    within = [one for one in commits if one > now - 7 * DAY]
    for number, at in enumerate([within[0], *month.random.sample(within[1:-1], 2)]):
        target = month.room.root / f"back-{number}"
        month.run("restore", "db", "--at", at.isoformat(), "--to", str(target))
        with MovedRestored(month.server, target) as back, back.connect() as connection:
            until(lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))
            rows = connection.execute("SELECT at FROM ledger ORDER BY n").fetchall()
        found = [row[0] for row in rows]
        # The row's own clock reads a little before its commit.
        assert found in (
            [one for one in commits if one <= at],
            [one for one in commits if one < at],
        )
        shutil.rmtree(target)
    early = now - 9 * DAY
    if early > START + DAY:
        month.run("restore", "db", "--at", early.isoformat(), "--to", "none", status=5)


def assert_log(month: Month) -> None:
    """The audit log verifies; with one byte of one leaf changed it does not."""
    month.run("audit", "verify")
    storage = S3Server(month.endpoint, "month", "month", bucket="month").storage("repository")
    name = leaf_name(7)
    whole = storage.get(name)
    for data, status in ((flip(whole, 800), 9), (whole, 0)):
        storage.put(name, data)
        month.run("audit", "verify", status=status)
