"""One command, both sides in one run: `make bench`, or `python -m bench vault large`.

    python -m bench [--runs 3] [--scale 1] [--work DIR] [PART …]

    parts: vault large logical physical daily stream plain scale artefacts wal open

Prints a table; keeps it as JSON under bench/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial

from bench.artefacts import artefacts
from bench.daily import daily
from bench.files import large, scale, vault
from bench.logical import logical
from bench.measure import Row
from bench.open import SIZES, open_
from bench.physical import physical
from bench.plain import plain
from bench.stream import stream
from bench.wal import wal

PARTS: dict[str, Callable[[str, int], list[Row]]] = {
    "vault": vault,
    "large": large,
    "logical": logical,
    "physical": physical,
    "daily": daily,
    "stream": stream,
    "plain": plain,
    "scale": scale,
    "artefacts": artefacts,
    "wal": wal,
    "open": open_,
}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the databases")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["2 GB"], help="of open")
    parser.add_argument(
        "--work", help="where data and repositories are made (12 GB; 45 for open of 10 GB)"
    )
    chosen = parser.parse_args()
    work = chosen.work or tempfile.mkdtemp(prefix="strongroom-bench-")
    os.makedirs(work, exist_ok=True)
    os.chmod(work, 0o711)  # the embedded server's own account must get through
    print(_machine())
    rows: list[Row] = []
    parts = {**PARTS, "logical": partial(logical, scale=chosen.scale)}
    parts["physical"] = partial(physical, scale=chosen.scale)
    parts["daily"] = partial(daily, scale=chosen.scale)
    parts["stream"] = partial(stream, scale=chosen.scale)
    parts["plain"] = partial(plain, scale=chosen.scale)
    parts["artefacts"] = partial(artefacts, scale=chosen.scale)
    parts["wal"] = partial(wal, scale=chosen.scale)
    parts["open"] = partial(open_, sizes=chosen.sizes)
    try:
        for part in chosen.parts or PARTS:
            for row in parts[part](os.path.realpath(work), chosen.runs):
                rows.append(row)
                print(_line(row), flush=True)
    finally:
        if chosen.work is None:
            shutil.rmtree(work, ignore_errors=True)
    _keep(rows)


def _machine() -> str:
    versions = []
    for program in (["restic", "version"], ["borg", "--version"]):
        if shutil.which(program[0]):
            said = subprocess.run(program, capture_output=True, text=True, check=False).stdout
            versions.append(said.split(" compiled")[0].strip())
    return (
        f"{os.cpu_count()} cores, {platform.machine()}; against {', '.join(versions) or 'nobody'}"
    )


def _line(row: Row) -> str:
    verdict = {True: "met", False: "MISSED", None: "-"}[row.met]
    return f"{row.work:<72} {row.ours:>12}  {row.theirs:<34} {row.value:>9}  {row.target:<11} {verdict}"


def _keep(rows: list[Row]) -> None:
    folder = os.path.join(os.path.dirname(__file__), "results")
    os.makedirs(folder, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with open(os.path.join(folder, f"{stamp}.json"), "w") as file:
        json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
