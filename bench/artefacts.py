"""Rows of portable artefacts: against `tar | gzip -6 | openssl enc` and `pg_dump | gzip`."""

from __future__ import annotations

import json
import os
import shutil
import sys

from bench import data
from bench.logical import _strongroom, filled
from bench.measure import Row, Side, at_most, fresh, paired, ratio, run
from bench.peers import Strongroom
from strongroom.postgres.embedded import EmbeddedServer, find_server

_PIPE = """\
import json, subprocess, sys
commands = json.loads(sys.argv[2])
before, running = None, []
for number, argv in enumerate(commands):
    last = number == len(commands) - 1
    out = open(sys.argv[1], "wb") if last else subprocess.PIPE
    running.append(subprocess.Popen(argv, stdin=before, stdout=out))
    before = running[-1].stdout
sys.exit(max([process.wait() for process in reversed(running)]))
"""


def artefacts(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """A vault's .tar.gz.enc and a database's .sql.gz, both sides to a file."""
    return _vault(work, times) + _database(work, times, scale)


def _piped(work: str, out: str, *commands: list[str]) -> list[str]:
    script = f"{work}/pipe.py"
    with open(script, "w") as file:
        file.write(_PIPE)
    return [sys.executable, script, out, json.dumps(commands)]


def _vault(work: str, times: int) -> list[Row]:
    root = data.vault(f"{work}/vault-data")
    ours = Strongroom(
        work,
        f'[artefacts]\nkey_dir = "{work}/keys"\n\n[source.vault]\ntype = "files"\npath = "{root}"\n',
    )
    ours.init()
    ours.backup("vault")
    out, key = f"{work}/artefacts", f"{work}/bench.key"
    with open(key, "w") as file:
        file.write(os.urandom(32).hex() + "\n")
    seal = f"openssl enc -aes-256-cbc -salt -pbkdf2 -pass file:{key}".split()
    theirs_argv = _piped(
        work, f"{work}/theirs.enc", ["tar", "-C", root, "-cf", "-", "."], ["gzip", "-6"], seal
    )
    export, theirs = Side("strongroom export"), Side("tar | gzip -6 | openssl enc")
    for _ in range(times):
        paired(1, (theirs, lambda: run(theirs_argv)))
        fresh(out)
        fresh(f"{work}/keys")
        paired(1, (export, lambda: ours._run("export", "vault", "-o", out)))
    rows = [
        ratio("artefact of a vault, .tar.gz.enc", export, theirs, 2),
        at_most(
            "size of it",
            _only(out, ".enc") / 1e6,
            os.path.getsize(f"{work}/theirs.enc") / 1e6,
            1.1,
            "MB",
            theirs.name,
        ),
        _memory("memory of it", export),
    ]
    os.unlink(f"{work}/theirs.enc")
    fresh(out)
    return rows


def _database(work: str, times: int, scale: float) -> list[Row]:
    home, out, zipped = f"{work}/pg", f"{work}/artefacts", f"{work}/theirs.gz"
    fresh(home)
    with EmbeddedServer(find_server(), home) as server:
        filled(server, work, scale)
        with server.connect("bench") as connection:
            connection.execute("VACUUM ANALYZE")
            row = connection.execute("SELECT pg_database_size('bench')").fetchone()
            size = row[0] / 1e9 if row else 0.0
        dump = [f"{server.installation.bindir}/pg_dump", f"--dbname={server.dsn_for('bench')}"]
        theirs_argv = _piped(work, zipped, dump, ["gzip"])
        ours = _strongroom(work, server)
        theirs, export, both = Side("pg_dump | gzip"), Side("export"), Side("backup --artefact")
        for _ in range(times):
            paired(1, (theirs, lambda: run(theirs_argv)))
            ours.init()
            fresh(out)
            paired(1, (both, lambda: ours._run("backup", "bench", "--artefact", out)))
            fresh(out)
            paired(1, (export, lambda: ours._run("export", "bench", "-o", out)))
        title = f".sql.gz of a {size:.1f} GB database"
        rows = [
            ratio(f"{title}, export", export, theirs, 3),
            ratio(f"{title}, backup --artefact", both, theirs, 3),
            at_most(
                "size of it",
                _only(out, ".gz") / 1e6,
                os.path.getsize(zipped) / 1e6,
                1.1,
                "MB",
                theirs.name,
            ),
            _memory("memory of it", export),
        ]
    os.unlink(zipped)
    shutil.rmtree(out)
    fresh(home)
    return rows


def _only(folder: str, suffix: str) -> int:
    (name,) = (name for name in os.listdir(folder) if name.endswith(suffix))
    return os.path.getsize(os.path.join(folder, name))


def _memory(work: str, side: Side) -> Row:
    value = side.peak / (1 << 20)
    return Row(work, f"{value:.0f} MiB", "-", f"{value:.0f} MiB", "≤ 300 MiB", value <= 300)


__all__ = ["artefacts"]
