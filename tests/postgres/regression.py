"""PostgreSQL's own regression database: what its developers thought of, as a thing to back up.

The SQL files are those of PostgreSQL's source of the same major version, run in the order of its
schedule; what they print is not looked at, only what they leave behind. Sources are taken from
$STRONGROOM_POSTGRES_SOURCES/MAJOR (a source tree), else from Debian by apt.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strongroom.postgres.embedded import EmbeddedServer, Installation, find_server

DATABASE = "regression"
# What takes long and leaves nothing behind, or wants a server of its own.
_LEFT_OUT = frozenset(
    ("stats", "stats_export", "sanity_check", "compression_lz4", "largeobject_perms", "numa")
)
_LISTS = """\
Types: deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm trixie sid
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def sources(major: int, folder: Path) -> Path:
    """src/test/regress of PostgreSQL's source, below `folder`; a skip where it cannot be had."""
    given = os.environ.get("STRONGROOM_POSTGRES_SOURCES")
    if given is not None:
        found = Path(given, str(major), "src/test/regress")
        if found.is_dir():
            return found
    if shutil.which("apt-get") is None:
        pytest.skip(f"the SQL files of PostgreSQL {major} are not here, and there is no apt")
    try:
        archive = _fetch(major, folder)
    except (subprocess.SubprocessError, StopIteration):
        pytest.skip(f"the SQL files of PostgreSQL {major} cannot be had from Debian by apt")
    with tarfile.open(archive) as tar:
        wanted = [one for one in tar if "/src/test/regress/" in one.name]
        tar.extractall(folder, wanted, filter="data")
    return next(folder.glob("*/src/test/regress"))


def _fetch(major: int, folder: Path) -> Path:
    """Debian's source archive, by lists of our own: nothing of the machine's is changed."""
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "debian.sources").write_text(_LISTS)
    (folder / "parts").mkdir()
    shutil.copy(folder / "debian.sources", folder / "parts")
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": str(folder / "parts"),
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for words in (["update"], ["source", "--download-only", f"postgresql-{major}"]):
        done = [*apt, *words]
        subprocess.run(done, cwd=folder, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.orig.tar.*"))


def populate(server: EmbeddedServer, regress: Path, work: Path, only: str = "") -> list[str]:
    """Make the regression database; `only` is a pattern of tests. Returns those that were run."""
    for folder in ("results", "testtablespace"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    installation = server.installation
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
        for setting in (
            "lc_messages TO 'C'",
            "lc_monetary TO 'C'",
            "lc_numeric TO 'C'",
            "lc_time TO 'C'",
            "bytea_output TO 'hex'",
            "timezone_abbreviations TO 'Default'",
        ):
            connection.execute(f"ALTER DATABASE {DATABASE} SET {setting}")
    environ = {
        "PATH": os.environ["PATH"],
        "PGHOST": server.socket_directory,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
        "PGPASSWORD": server._password,
        "PGDATABASE": DATABASE,
        "PGTZ": "PST8PDT" if installation.version[0] < 17 else "America/Los_Angeles",
        "PGDATESTYLE": "Postgres, MDY",
        "PGOPTIONS": "-c intervalstyle=postgres_verbose",
        "PG_ABS_SRCDIR": str(regress),
        "PG_ABS_BUILDDIR": str(work),
        "PG_LIBDIR": str(_library(installation, regress, work)),
        "PG_DLSUFFIX": ".so",
        "LC_ALL": "C.UTF-8",
    }
    psql = _program(installation, "psql")
    ran: list[str] = []

    def run(name: str) -> None:
        argv = [psql, "-X", "-q", "-a", "-f", str(regress / f"sql/{name}.sql")]
        with open(work / f"results/{name}.out", "wb") as out:
            subprocess.run(
                argv, env=environ, cwd=work, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                check=False, timeout=600,
            )  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        for group in _schedule(regress):
            names = [name for name in group if name not in _LEFT_OUT]
            names = [name for name in names if not only or re.fullmatch(only, name)]
            list(pool.map(run, names))
            ran += names
    return ran


def _schedule(regress: Path) -> Iterator[list[str]]:
    for line in (regress / "parallel_schedule").read_text().splitlines():
        if line.startswith("test:"):
            yield line.removeprefix("test:").split()


def _library(installation: Installation, regress: Path, work: Path) -> Path:
    """Where regress.so is: made if a compiler and the headers are here, else nowhere (the few
    functions in C are then missing from the database)."""
    target = work / "lib"
    target.mkdir(exist_ok=True)
    headers = [os.environ.get("STRONGROOM_POSTGRES_HEADERS")]
    headers += [
        subprocess.run(
            [_program(installation, "pg_config"), "--includedir-server"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    ]  # fmt: skip
    for folder in headers:
        if folder and os.path.exists(os.path.join(folder, "postgres.h")) and shutil.which("cc"):
            argv = ["cc", "-shared", "-fPIC", "-O1", f"-I{folder}", f"-I{regress}"]
            argv += ["-o", str(target / "regress.so"), str(regress / "regress.c")]
            subprocess.run(argv, check=False, capture_output=True)
    for folder in (work, target):
        folder.chmod(0o755)
    return target


def _program(installation: Installation, name: str) -> str:
    path = os.path.join(installation.bindir, name)
    if os.access(path, os.X_OK):
        return path
    return os.path.join(find_server(installation.version[0]).bindir, name)
