"""Rows of the vault: 100,000 small files; and of large files, against the machine's limit."""

from __future__ import annotations

import os
import sys

from bench import data
from bench.measure import Row, Side, at_most, fresh, missing, paired, ratio, run, size_of
from bench.peers import Borg, Restic, Strongroom

SHM = "/dev/shm"


def _source(name: str, path: str) -> str:
    return f'[source.{name}]\ntype = "files"\npath = "{path}"\n'


def vault(work: str, times: int) -> list[Row]:
    """First, unchanged, restore and stored bytes of 100,000 small files."""
    path = data.vault(f"{work}/vault")
    ours = Strongroom(work, _source("vault", path))
    sides: dict[str, dict[str, Side]] = {}

    def side(program: str, what: str) -> Side:
        return sides.setdefault(program, {}).setdefault(what, Side(program))

    restic, borg = Restic(work), Borg(work)
    for _ in range(times):
        _warm(path)
        ours.init()
        paired(1, (side("strongroom", "first"), lambda: ours.backup("vault")))
        paired(1, (side("strongroom", "unchanged"), lambda: ours.backup("vault")))
        _restores(times=1, side=side("strongroom", "tmpfs"), to=f"{SHM}/strongroom-out", ours=ours)
        _restores(times=1, side=side("strongroom", "disk"), to=f"{work}/out", ours=ours)
        if Restic.present():
            restic.init()
            paired(1, (side("restic", "first"), lambda: restic.backup(path)))
            paired(1, (side("restic", "unchanged"), lambda: restic.backup(path)))
            for what, to in (("tmpfs", f"{SHM}/restic-out"), ("disk", f"{work}/restic-out")):
                fresh(to)
                paired(1, (side("restic", what), lambda to=to: restic.restore(to)))
                fresh(to)
        if Borg.present():
            borg.init()
            paired(1, (side("borg", "first"), lambda: borg.backup(path)))
    rows = []
    if Restic.present():
        ourselves, theirs = sides["strongroom"], sides["restic"]
        rows += [
            ratio("vault, first backup", ourselves["first"], theirs["first"], 5),
            ratio("vault, nothing changed", ourselves["unchanged"], theirs["unchanged"], 5),
            ratio("vault, restore onto tmpfs", ourselves["tmpfs"], theirs["tmpfs"], 3),
            ratio("vault, restore onto disk", ourselves["disk"], theirs["disk"], 1),
            at_most(
                "vault, stored bytes",
                size_of(ours.repository) / 1e6,
                size_of(restic.repository) / 1e6,
                0.85,
                "MB",
                "restic",
            ),
        ]
    else:
        rows.append(missing("vault", "restic"))
    if Borg.present():
        rows.append(
            ratio("vault, first backup", sides["strongroom"]["first"], sides["borg"]["first"], 8)
        )
    else:
        rows.append(missing("vault, first backup", "borg"))
    return rows


def _warm(path: str) -> None:
    """Read everything once: inodes that are cold cost whoever comes first ten seconds more."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                while file.read(1 << 20):
                    pass


def _restores(times: int, side: Side, to: str, ours: Strongroom) -> None:
    fresh(to)
    paired(times, (side, lambda: ours.restore("vault", to)))
    fresh(to)


def large(work: str, times: int, mib: int = 4096) -> list[Row]:
    """Large mixed files against the bare primitives and restic."""
    path = data.large(f"{work}/large", mib)
    ours, restic = Strongroom(work, _source("large", path)), Restic(work)
    first, limit, theirs = Side("strongroom"), Side("bare primitives"), Side("restic")
    back = {where: Side("strongroom") for where in ("tmpfs", "disk")}
    theirs_back = {where: Side("restic") for where in back}
    for _ in range(times):
        fresh(f"{work}/limit")
        command = [sys.executable, "-m", "bench.limit", path, f"{work}/limit"]
        paired(1, (limit, lambda command=command: run(command)))
        fresh(f"{work}/limit")
        ours.init()
        paired(1, (first, lambda: ours.backup("large")))
        for where, to in (("tmpfs", f"{SHM}/strongroom-out"), ("disk", f"{work}/out")):
            paired(1, (back[where], lambda to=to: ours.restore("large", fresh(to))))
            fresh(to)
        if Restic.present():
            restic.init()
            paired(1, (theirs, lambda: restic.backup(path)))
            for where, to in (("tmpfs", f"{SHM}/restic-out"), ("disk", f"{work}/restic-out")):
                paired(1, (theirs_back[where], lambda to=to: restic.restore(fresh(to))))
                fresh(to)
    share = limit.wall / first.wall
    rows = [
        Row(
            f"{mib // 1024} GB of large files, of the limit",
            f"{first.wall:.2f} s",
            f"bare primitives {limit.wall:.2f} s",
            f"{share:.0%}",
            "≥ 75 %",
            share >= 0.75,
        )
    ]
    if Restic.present():
        rows.append(ratio(f"{mib // 1024} GB of large files, first backup", first, theirs, 3))
        # On disk restic has its packs in the page cache and syncs nothing; we read ours from the disk
        # and sync what is restored.
        for where, side in back.items():
            title = f"{mib // 1024} GB of large files, restore onto {where}"
            rows.append(ratio(title, side, theirs_back[where], 3))
    else:
        rows.append(missing("large files", "restic"))
    fresh(ours.repository)
    fresh(restic.repository)
    return rows


def scale(work: str, times: int) -> list[Row]:
    """Peak memory at a million files and at ten million chunks."""
    del times
    path = data.many(f"{work}/many", 1_000_000)
    ours = Strongroom(work, _source("many", path))
    ours.init()
    first = ours.backup("many")
    again = ours.backup("many")
    peak = max(first.peak, again.peak) / 1e6
    index = run([sys.executable, "-m", "bench.index", "10000000"]).peak / 1e6
    fresh(ours.repository)
    return [
        Row(
            f"1,000,000 files, peak memory (first {first.wall:.0f} s, again {again.wall:.0f} s)",
            f"{peak:.0f} MB",
            "-",
            f"{peak:.0f} MB",
            "≤ 500 MB",
            peak <= 500,
        ),
        Row(
            "10,000,000 chunks in the index, peak memory",
            f"{index:.0f} MB",
            "-",
            f"{index:.0f} MB",
            "≤ 1,000 MB",
            index <= 1000,
        ),
    ]


def usable(work: str) -> str:
    """The working directory, made if need be."""
    os.makedirs(work, exist_ok=True)
    return work
