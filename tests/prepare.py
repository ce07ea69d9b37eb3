"""Install what the tests want from Debian, where that can be done; say what is left out.

PyPI brings PostgreSQL 16 and 18 and every server but one: PostgreSQL 15 with
TLS comes from Debian. Without it the tests that need it are skipped with a
line that says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = {
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "shellcheck": "/usr/bin/shellcheck",
    "age": "/usr/bin/age",
}
_CLUSTER = "/etc/postgresql-common/createcluster.d/strongroom-tests.conf"


def main() -> int:
    """Install the missing packages as root with apt; never fail for want of them."""
    missing = [name for name, proof in PACKAGES.items() if not os.path.exists(proof)]
    if not missing:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(
            f"not installed, and not root on Debian: {' '.join(missing)}; their tests are skipped"
        )
        return 0
    # Debian's package would make and start a cluster of its own; the tests make theirs.
    os.makedirs(os.path.dirname(_CLUSTER), exist_ok=True)
    with open(_CLUSTER, "w", encoding="utf-8") as file:
        file.write("create_main_cluster = false\n")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing],
    ):
        done = subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"{' '.join(argv)} ended with {done.returncode}; tests that need it are skipped")
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
