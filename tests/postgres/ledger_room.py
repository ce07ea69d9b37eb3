"""A server with a ledger whose log goes into a repository, base backups beside it, and recovery.

Everything is done by the commands that a person would run; only the books are kept here.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from postgres.ledger import (
    SEGMENT,
    SETTINGS,
    Account,
    Ledger,
    Target,
    account,
    assert_prefix,
    files_of_log,
)
from postgres.wal.room import WalRoom, program, ready, until
from strongroom import wiring
from strongroom.config.loading import load
from strongroom.format.wal import history_name, lsn_text, parse_history
from strongroom.operations.can_restore import answer, require
from strongroom.operations.points import look
from strongroom.operations.recovering import Opening, opened
from strongroom.postgres.embedded import EmbeddedServer, Installation
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.progress import Silent
from strongroom.repository.repository import Repository
from strongroom.rules import recovery as rules


@dataclass(frozen=True)
class Backup:
    """A base backup, as the repository tells of it."""

    id: str
    facts: PhysicalFacts


class Recovered(EmbeddedServer):
    """A server on a data directory that a restore makes."""

    def __init__(self, installation: Installation, password: str, settings: dict[str, str]) -> None:
        super().__init__(installation, durable=False, settings=settings)
        self._password = password
        self._initialised = True

    def take_over(self, *, archiving: dict[str, str] | None = None) -> None:
        """Write where this machine has its socket; and what a new primary is told, to archive."""
        self._configure()
        with open(os.path.join(self.data_directory, "postgresql.auto.conf"), "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in (archiving or {}).items())


@contextlib.contextmanager
def telling(server: EmbeddedServer) -> Iterator[None]:
    """Where it fails, print what the server said."""
    try:
        yield
    except BaseException:
        with open(server.log_path, encoding="utf-8", errors="replace") as log:
            print(log.read()[-6000:])
        raise


class LedgerRoom:
    """One life of a cluster: work, backups, a promotion, more work; and the books of it."""

    def __init__(self, room: WalRoom, installation: Installation, seed: int) -> None:
        self.room, self.installation, self.seed = room, installation, seed
        self.log = room.root / "log"  # what pg_wal held, for pg_waldump
        self.log.mkdir()
        self.config = room.root / "backup.toml"
        self.books: dict[int, Account] = {}
        self.forks: dict[int, int] = {}  # where a timeline left the one before it
        self.password = ""

    def archiving(self) -> dict[str, str]:
        """The settings of a server that archives into the repository."""
        return {"archive_mode": "on", "archive_command": self.room.archive_command()}

    @contextlib.contextmanager
    def server(self) -> Iterator[EmbeddedServer]:
        server = EmbeddedServer(
            self.installation,
            durable=False,
            settings=SETTINGS | self.archiving(),
            initdb=[f"--wal-segsize={SEGMENT >> 20}", "--data-checksums"],
        )
        with server:
            self.password = server._password
            yield server

    def back_up(self, server: EmbeddedServer) -> None:
        """`strongroom backup db`, by the account of the server."""
        parameters = conninfo_to_dict(server.dsn)
        self.room.environ |= {
            "LEDGER_PASSWORD": str(parameters.pop("password")),
            "STRONGROOM_PROGRAM": program(),
            "STRONGROOM_WAL_SOCKET": str(self.room.socket),
        }
        dsn = make_conninfo(**{key: str(value) for key, value in parameters.items()})
        self.config.write_text(
            f'cache_dir = "{self.room.root}/cache"\n'
            f'[repository]\nurl = "{self.room.repository}"\nkey_file = "{self.room.key}"\n'
            f'[source.db]\ntype = "postgres"\nmethod = "physical"\nvia = "local"\ndsn = "{dsn}"\n'
            'password = "env:LEDGER_PASSWORD"\n'
        )
        self.config.chmod(0o644)
        self.room.run("backup", "db", "--config", str(self.config))

    def close(self, ledger: Ledger, server: EmbeddedServer, timeline: int) -> None:
        """Wait until all of the log is archived, and close the books of a timeline."""
        ledger.close()
        with server.connect() as connection:
            connection.execute("SELECT pg_logical_emit_message(false, 'the', 'end')")
            connection.execute("SELECT pg_switch_wal()")
        until(lambda: not ready(server), 120)
        pg_wal = os.path.join(server.data_directory, "pg_wal")
        files = [name for name in files_of_log(server) if int(name[:8], 16) == timeline]
        for name in files:
            shutil.copy(os.path.join(pg_wal, name), self.log / name)
        log = [(timeline, files[0], files[-1])]
        if timeline > 1:
            with open(os.path.join(pg_wal, history_name(timeline)), "rb") as file:
                self.forks[timeline] = parse_history(file.read())[-1].lsn
            first = min(path.name for path in self.log.iterdir())
            log.insert(0, (timeline - 1, first, f"{timeline - 1:08X}{files[0][8:]}"))
        before = self.books.get(timeline - 1)
        self.books[timeline] = account(ledger, str(self.log), log, before)
        assert_prefix(server.dsn, self.books[timeline], Target("latest", timeline=timeline))

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        configuration = load(config=str(self.room.config), environ=self.room.environ).configuration
        storage = wiring.open_storage(configuration, self.room.environ)
        try:
            yield wiring.open_repository(storage, [wiring.key_file_holder(str(self.room.key))])
        finally:
            storage.close()

    def backups(self) -> list[Backup]:
        """Oldest first."""
        with self.repository() as repository:
            found = [
                Backup(one.id, PhysicalFacts.from_json(repository.open_snapshot(one).facts))
                for one in repository.catalogue.snapshots("db")
            ]
        return sorted(found, key=lambda one: one.facts.stop_time)

    def targets(self, dice: random.Random, count: int, timeline: int) -> list[Target]:
        stops = [
            (one.facts.stop_lsn, one.facts.stop_time)
            for one in self.backups()
            if self._leads_to(timeline, one.facts)
        ]
        return self.books[timeline].targets(dice, count, stops)

    def _leads_to(self, timeline: int, base: PhysicalFacts) -> bool:
        """Whether a backup was over before its timeline was left for the target's."""
        if base.timeline >= timeline:
            return base.timeline == timeline
        return base.stop_lsn <= self.forks[timeline]

    @contextlib.contextmanager
    def recovered(
        self, target: Target, archiving: dict[str, str] | None = None
    ) -> Iterator[EmbeddedServer]:
        """`strongroom restore`, into a directory of its own; the server is promoted there."""
        server = Recovered(self.installation, self.password, SETTINGS)
        try:
            words = [*_words(target), "--to", server.data_directory]
            self.room.run("restore", "db", "--config", str(self.config), *words)
            server.take_over(archiving=archiving)
            with telling(server):
                server.start()
            with telling(server), server.connect() as connection:
                until(
                    lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
                )
            yield server
        finally:
            server.close()

    @contextlib.contextmanager
    def opened(self, target: Target) -> Iterator[EmbeddedServer]:
        """A throw-away server at the target, to which the log is handed by name."""
        with self.repository() as repository:
            cluster = look(repository, "db")
            verdict = require(answer(cluster, _rule(target)), cluster)
            with opened(
                repository, cluster, verdict, how=Opening(fuse=False), jobs=None, progress=Silent()
            ) as sandbox:
                yield sandbox

    @property
    def system_id(self) -> int:
        return self.backups()[0].facts.system_id


def _rule(target: Target) -> rules.Target:
    """A target as the rules have it."""
    return rules.Target(
        target.kind,
        time=target.time,
        lsn=target.lsn if target.kind == "lsn" else None,
        xid=target.xid,
        name=target.name,
        timeline=target.timeline,
        exclusive=target.exclusive,
    )


def _words(target: Target) -> list[str]:
    """A target as a person writes it."""
    words = [f"--timeline={target.timeline}"]
    if target.time is not None:
        words.append(f"--at={target.time.isoformat()}")
    elif target.kind == "lsn" and target.lsn is not None:
        words.append(f"--lsn={lsn_text(target.lsn)}")
    elif target.kind == "xid":
        words.append(f"--xid={target.xid}")
    elif target.kind == "name":
        words.append(f"--name={target.name}")
    elif target.kind == "immediate":
        words.append("--immediate")
    return [*words, "--exclusive"] if target.exclusive else words
