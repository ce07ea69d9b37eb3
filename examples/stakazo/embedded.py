#!/usr/bin/env python3
"""Run a command beside a throw-away PostgreSQL with the platform in it.

    python embedded.py [--size S] [--vault-at FOLDER] [COMMAND …]

The command gets DB_HOST, DB_PORT, DB_USER, PGPASSWORD and DB_NAME, and VAULT_ROOT with
--vault-at (a folder that is missing or empty is filled, any other is taken as it is). Without a
command it waits for Ctrl-C and prints what to export. The server and its data end with it. Needs
Strongroom, whose embedded server this is.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time

from psycopg.conninfo import conninfo_to_dict

from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer

HERE = os.path.dirname(os.path.abspath(__file__))
DATABASE = "stakazo_prod"


def main() -> int:
    """Start, fill, run, end; the exit status is the command's."""
    parser = argparse.ArgumentParser(description="The platform on an embedded PostgreSQL.")
    parser.add_argument("--size", default="small")
    parser.add_argument("--vault-at", metavar="FOLDER")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    try:
        with EmbeddedServer(durable=False) as server:
            environ = {**os.environ, **_address(server)}
            with server.connect() as connection:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            status = _fill(environ, asked.size, asked.vault_at)
            if status:
                return status
            if not command:
                return _wait(environ)
            return _beside(command, environ)
    except StrongroomError as fault:
        print(f"embedded.py: {fault.what} {fault.do}", file=sys.stderr)
        return fault.exit_status


def _address(server: EmbeddedServer) -> dict[str, str]:
    parts = conninfo_to_dict(server.dsn_for(DATABASE))
    names = {"DB_HOST": "host", "DB_PORT": "port", "DB_USER": "user", "PGPASSWORD": "password"}
    return {name: str(parts[part]) for name, part in names.items()} | {"DB_NAME": DATABASE}


def _fill(environ: dict[str, str], size: str, vault: str | None) -> int:
    seed = [sys.executable, os.path.join(HERE, "seed.py"), f"--size={size}", "--migrate"]
    if vault is None:
        seed.append("--database")
    else:
        environ.pop("STAKAZO_VAULT", None)
        environ["VAULT_ROOT"] = vault
        if os.path.isdir(vault) and os.listdir(vault):
            seed.append("--database")
    return _plain(
        subprocess.run(seed, env=environ, stdout=subprocess.DEVNULL, check=False).returncode
    )


def _beside(command: list[str], environ: dict[str, str]) -> int:
    """Run the command; what would end us ends it first, and the server last."""
    with subprocess.Popen(command, env=environ) as child:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda number, frame: child.send_signal(number))
        return _plain(child.wait())


def _wait(environ: dict[str, str]) -> int:
    for name in ("DB_HOST", "DB_PORT", "DB_USER", "PGPASSWORD", "DB_NAME", "VAULT_ROOT"):
        if name in environ:
            print(f"export {name}={shlex.quote(environ[name])}", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0


def _plain(status: int) -> int:
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
