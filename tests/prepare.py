"""Install what the tests want from Debian, where that can be done; say what is left out.

PyPI brings PostgreSQL 16 and 18 and every server but one: PostgreSQL 15 with
TLS comes from Debian. Without it the tests that need it are skipped with a
line that says so. Of Prometheus only promtool is taken, beside our Python:
its package would start a server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

PACKAGES = {
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "shellcheck": "/usr/bin/shellcheck",
    "age": "/usr/bin/age",
}
PROMTOOL = os.path.join(os.path.dirname(sys.executable), "promtool")
_CLUSTER = "/etc/postgresql-common/createcluster.d/strongroom-tests.conf"


def main() -> int:
    """Install the missing packages as root with apt; never fail for want of them."""
    missing = [name for name, proof in PACKAGES.items() if not os.path.exists(proof)]
    promtool = shutil.which("promtool") or os.path.exists(PROMTOOL)
    if not missing and promtool:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        names = " ".join([*missing, *["promtool"] * (not promtool)])
        print(f"not installed, and not root on Debian: {names}; their tests are skipped")
        return 0
    # Debian's package would make and start a cluster of its own; the tests make theirs.
    os.makedirs(os.path.dirname(_CLUSTER), exist_ok=True)
    with open(_CLUSTER, "w", encoding="utf-8") as file:
        file.write("create_main_cluster = false\n")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
    for argv in (["apt-get", "update", "-qq"], *[install] * bool(missing)):
        done = subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"{' '.join(argv)} ended with {done.returncode}; tests that need it are skipped")
            break
    if not promtool:
        _take_promtool(env)
    return 0


def _take_promtool(env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for argv in (
            ["apt-get", "download", "-qq", "prometheus"],
            ["sh", "-c", "dpkg-deb --extract prometheus_*.deb ."],
            ["install", "-m", "755", "usr/bin/promtool", PROMTOOL],
        ):
            done = subprocess.run(argv, env=env, cwd=folder, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                print(f"{argv[0]} ended with {done.returncode}; alert rules are not evaluated")
                return


if __name__ == "__main__":
    sys.exit(main())
