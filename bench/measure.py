"""Run whole processes, in turn, and keep what the operating system says of each."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """One finished process: wall and CPU seconds, peak memory in bytes."""

    wall: float
    cpu: float
    peak: int


@dataclass
class Side:
    """One program's runs of one piece of work."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak(self) -> int:
        return max(run.peak for run in self.runs)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was reached, what is to be reached, and whether it is."""

    work: str
    ours: str
    theirs: str
    value: str
    target: str
    met: bool | None


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
) -> Run:
    """Run a command to its end; fail loudly if it fails."""
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **(env or {})}, cwd=cwd
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace")[-4000:])
            raise SystemExit(f"{argv[0]} ended with {process.returncode}: {' '.join(argv)}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Processes that our children leave behind become ours, so that their CPU time can be had."""
    if ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise SystemExit("prctl(PR_SET_CHILD_SUBREAPER) failed")


def reaped() -> float:
    """CPU seconds of all children that have ended, and of theirs; ended ones are taken first."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def spent(pid: int) -> float:
    """CPU seconds of a process that runs."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def paired(times: int, *sides: tuple[Side, Callable[[], Run]]) -> None:
    """Run every side once, then again, so that a drifting machine hurts all alike."""
    for _ in range(times):
        for side, work in sides:
            side.runs.append(work())


def ratio(work: str, ours: Side, theirs: Side, at_least: float) -> Row:
    """How many times faster than `theirs` we are."""
    value = theirs.wall / ours.wall
    return Row(
        work,
        f"{ours.wall:.2f} s",
        f"{theirs.name} {theirs.wall:.2f} s",
        f"{value:.2f} ×",
        f"≥ {at_least} ×",
        value >= at_least,
    )


def ratio_cpu(work: str, ours: Side, theirs: Side, at_least: float) -> Row:
    """How much less CPU time we take than `theirs`: what counts while others use the machine."""
    value = theirs.cpu / ours.cpu
    return Row(
        f"{work}, CPU time",
        f"{ours.cpu:.2f} s",
        f"{theirs.name} {theirs.cpu:.2f} s",
        f"{value:.2f} ×",
        f"≥ {at_least} ×",
        value >= at_least,
    )


def at_most(work: str, ours: float, theirs: float, limit: float, unit: str, name: str) -> Row:
    """Our figure as a fraction of theirs."""
    value = ours / theirs
    return Row(
        work,
        f"{ours:.2f} {unit}",
        f"{name} {theirs:.2f} {unit}",
        f"{value:.3f} ×",
        f"≤ {limit} ×",
        value <= limit,
    )


def size_of(path: str, without: str = "") -> int:
    """Bytes of all files below a directory, but for what is below one of a name in it."""
    total = 0
    for folder, below, names in os.walk(path):
        if folder == path and without in below:
            below.remove(without)
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total


def fresh(path: str) -> str:
    """An absent path: whatever was there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def missing(work: str, program: str) -> Row:
    """A row that cannot be measured here, said and not hidden."""
    return Row(work, "-", f"{program} is not on PATH", "-", "-", None)
