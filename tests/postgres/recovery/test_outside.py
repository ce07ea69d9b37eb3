"""A cluster whose configuration is not in its data directory, as Debian makes them, started elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from postgres.physical.tools import Room, cluster, run
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server, service_account
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.progress import Silent


class Elsewhere(EmbeddedServer):
    """A server on a restored directory, with what came with it."""

    data: Path

    @property
    def data_directory(self) -> str:
        return str(self.data)

    def _arguments(self) -> list[str]:
        words = {"unix_socket_directories": self.socket_directory, "port": str(self.port)}
        return [word for key, value in words.items() for word in ("-c", f"{key}={value}")]


def test_trap_24_a_cluster_with_its_configuration_outside_starts_where_it_is_restored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        server = cluster(15)
    except NotFound:
        pytest.skip("no PostgreSQL 15 here: `apt-get install postgresql-15`")
    etc = folder / "etc/postgresql/15/main"
    with server:
        run(server, "CREATE TABLE t AS SELECT generate_series(1, 100) AS a", "CHECKPOINT")
        server.stop()
        data = Path(server.data_directory)
        (etc / "conf.d").mkdir(parents=True)
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            shutil.move(data / name, etc / name)
        places = f"data_directory = '{data}'\nhba_file = '{etc}/pg_hba.conf'\n"
        places += f"ident_file = '{etc}/pg_ident.conf'\nexternal_pid_file = '{folder}/pid'\n"
        with open(etc / "postgresql.conf", "a") as file:
            file.write(places + "include_dir = 'conf.d'\ninclude_if_exists '../shared.conf'\n")
        (etc / "conf.d/10-work.conf").write_text("work_mem = '7MB'\n")
        (etc / "../shared.conf").write_text("maintenance_work_mem = '77MB'\n")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, service_account().uid, -1)
        more = ["-c", f"config_file={etc}/postgresql.conf"]
        monkeypatch.setattr(server, "_arguments", lambda: more)
        server.start()
        room = Room(server, folder)
        report, facts = room.take()
        assert len(facts.external) == 5
        password = server._password
    shutil.rmtree(folder / "etc")
    target = folder / "restored"
    recovery = Recovery(f"cp {room.archive.folder}/%f %p", immediate=True)
    sink = PhysicalSink(os.fsencode(target), recovery=recovery)
    outcome = sink.restore(room.reader(report), progress=Silent())
    assert outcome.facts["configuration"] == f"{target}.config"
    kept = Path(f"{target}.config", *etc.parts[1:])
    assert (kept / "conf.d/10-work.conf").read_text() == "work_mem = '7MB'\n"
    program = os.path.join(find_server(15).bindir, "pg_verifybackup")
    subprocess.run([program, "--no-parse-wal", str(target)], check=True, capture_output=True)
    restored = Elsewhere(find_server(15), durable=False)
    restored.data, restored._initialised, restored._password = target, True, password
    with restored:
        assert run(restored, "SELECT count(*) FROM t") == (100,)
        assert run(restored, "SHOW work_mem") == ("7MB",)
        assert run(restored, "SHOW maintenance_work_mem") == ("77MB",)
        assert run(restored, "SHOW hba_file") == (f"{target}/pg_hba.conf",)
