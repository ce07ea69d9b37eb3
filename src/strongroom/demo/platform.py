"""The example platform (examples/stakazo), driven by its own commands as a person would.

Nothing of it is imported here and none of its schema is repeated: it is found as a folder, beside
the package in a checkout or where STRONGROOM_EXAMPLES says, and run with this Python.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping

from strongroom.errors import Damaged, NotFound
from strongroom.postgres.embedded import EmbeddedServer

_INSIDE = os.path.join("examples", "stakazo")
_NEEDS = ("sqlalchemy", "alembic")


def find_platform(environ: Mapping[str, str]) -> str:
    """The folder of the platform; NotFound, which says how to have it, when it is not here."""
    here = os.path.dirname(os.path.abspath(__file__))
    checkout = os.path.abspath(os.path.join(here, *[os.pardir] * 3))
    named = environ.get("STRONGROOM_EXAMPLES")
    places = (
        [os.path.join(named, "stakazo")]
        if named
        else [os.path.join(checkout, _INSIDE), os.path.abspath(_INSIDE)]
    )
    for place in places:
        if os.path.isfile(os.path.join(place, "seed.py")):
            _check_libraries()
            return place
    raise NotFound(
        "The example platform is not here: an installed Strongroom comes without examples/stakazo.",
        means="Nothing was started.",
        do="Run `make demo` in a checkout of the source, or set STRONGROOM_EXAMPLES to its folder "
        "examples.",
    )


def _check_libraries() -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise NotFound(
            f"The example platform needs {' and '.join(missing)}.",
            means="Nothing was started.",
            do='Install them: `pip install "strongroom[demo]"`.',
        )


class Platform:
    """The platform on one database and one vault."""

    def __init__(self, server: EmbeddedServer, database: str, vault: str) -> None:
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 -- heavy, only for a demo

        self.folder = find_platform(os.environ)
        parts = conninfo_to_dict(server.dsn_for(database))
        names = {"DB_HOST": "host", "DB_PORT": "port", "DB_USER": "user", "PGPASSWORD": "password"}
        ours = ("DATABASE_URL", "STAKAZO_VAULT")
        self._environ = {
            **{name: value for name, value in os.environ.items() if name not in ours},
            **{name: str(parts[part]) for name, part in names.items()},
            "DB_NAME": database,
            "VAULT_ROOT": vault,
        }

    def migrate(self) -> None:
        """Carry out the migrations: `alembic upgrade head`."""
        self._run("-m", "alembic", "upgrade", "head", folder="backend")

    def seed(self, *words: str) -> None:
        """Run the seeder with these words."""
        self._run("seed.py", *words)

    def smoke_test(self) -> list[str]:
        """Run the smoke tests; what failed."""
        done = self._start("smoke_tests.py")
        said = done.stdout.decode(errors="replace").splitlines()
        failed = [line for line in said if not line.startswith("ok")]
        if done.returncode and not failed:
            failed = done.stderr.decode(errors="replace").splitlines()[-3:]
        return failed

    def _run(self, *words: str, folder: str = "") -> None:
        done = self._start(*words, folder=folder)
        if done.returncode:
            raise Damaged(
                f"{' '.join(words)} of the example platform ended with {done.returncode}:\n"
                + done.stderr.decode(errors="replace")[-2000:],
                means="Nothing of yours was touched.",
            )

    def _start(self, *words: str, folder: str = "") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=os.path.join(self.folder, folder),
            env=self._environ,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
