"""The recovery kit: one plain page to be printed, that a stranger in a bad hour can follow.

Pure: everything on the page is an argument. The page is secret, since the
recovery code is on it; it is never stored in the repository it opens.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

_RULE = "=" * 72


def recovery_kit(
    *,
    repository_id: str,
    url: str,
    created: str,
    recovery_code: str,
    version: str,
    sources: Mapping[str, str] | None = None,
    access: Mapping[str, str] | None = None,
) -> str:
    """Return the page.

    `url` must hold no secret; `created` is ISO 8601; `sources` gives for each configured source
    the place that the example restores it to, as `--to` takes it; `access` the environment that
    `url` needs besides, with "" for what must not be printed.
    """
    sources = sources or {}
    parts = [
        _head(repository_id, url, created, version, sources),
        _code(recovery_code),
        _with_strongroom(url, recovery_code, version, sources, access or {}),
        _without_strongroom(url, recovery_code),
        _keep(),
    ]
    return f"\n{_RULE}\n\n".join(parts)


def _head(
    repository_id: str, url: str, created: str, version: str, sources: Mapping[str, str]
) -> str:
    return f"""STRONGROOM RECOVERY KIT

WHAT     Backups of {", ".join(sources) or "(sources are configured later)"},
         encrypted; without a key nobody can read them.
WHERE    {url}
ID       {repository_id}
MADE     {created} by Strongroom {version}
KEY      The recovery code below. It opens everything in the repository,
         also when every passphrase, key file and server is lost.
ACCESS   If WHERE is remote, its own credentials are needed too (bucket keys,
         SSH login). They are not on this page. They are kept at:

         ______________________________________________________________
"""


def _code(recovery_code: str) -> str:
    half = len(recovery_code) // 2
    return f"""RECOVERY CODE

         {recovery_code[:half].strip("-")}
         {recovery_code[half:].strip("-")}

         Case, spaces and dashes do not matter. The letters I, L, O and U
         are not used: what looks like one is 1 or 0.
"""


def _with_strongroom(
    url: str, code: str, version: str, sources: Mapping[str, str], access: Mapping[str, str]
) -> str:
    place = shlex.quote(url)
    extra = "[s3]" if "://" in url else ""
    exports = "".join(
        f"  export {name}={shlex.quote(value) if value else '...'}\n"
        for name, value in access.items()
    )
    restores = "\n".join(
        f"  strongroom --repository {place} restore {shlex.quote(name)} --to {shlex.quote(to)}"
        for name, to in (sources or {"SOURCE": "DIR"}).items()
    )
    return f"""GET IT BACK WITH STRONGROOM

On any Linux machine with Python 3.11 or newer:

  python3 -m venv strongroom-env && . strongroom-env/bin/activate
  pip install 'strongroom{extra}>={version}'
{exports}  export STRONGROOM_RECOVERY_CODE={code}
  strongroom --repository {place} list
{restores}
  unset STRONGROOM_RECOVERY_CODE
{_about_databases(sources)}"""


def _about_databases(sources: Mapping[str, str]) -> str:
    if not any("://" in place for place in sources.values()):
        return ""
    return """
USER and SERVER are of the PostgreSQL server that shall have the database;
its password goes into PGPASSWORD or ~/.pgpass.
"""


def _without_strongroom(url: str, code: str) -> str:
    place = shlex.quote(url)
    return f"""GET IT BACK WITHOUT STRONGROOM

The format is public (docs/format.md). One file, recover.py, reads it, and
needs Python and three libraries. If WHERE is remote, copy the repository to
a local directory first and name that directory instead.

  pip install cryptography blake3 backports.zstd
  printf %s {code} > code.txt
  python3 recover.py --repository {place} --code-file code.txt list
  python3 recover.py --repository {place} --code-file code.txt restore SNAPSHOT DEST
  rm code.txt

SNAPSHOT is a name from the list, DEST a new directory.
"""


def _keep() -> str:
    return """KEEP IT

Print this page and keep it away from the machines that are backed up, best
twice in two places (safe, notary, bank). Who holds it can read everything:
treat it like the data. If it is lost or was seen, make a new one and remove
the old key:   strongroom key add NAME --new-recovery-code
                  then   strongroom key remove recovery-kit
"""
