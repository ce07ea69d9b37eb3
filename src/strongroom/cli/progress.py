"""Three listeners to a run: a live display, a plain line now and then, JSON lines.

The engine counts from many threads, hundreds of thousands of times; a count is
an addition under a lock, and only a ticking thread looks at the sums.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from strongroom.cli.output import Output
from strongroom.progress import Progress
from strongroom.rules.sizes import show_seconds, show_size

_JSON_SECONDS = 0.5
_PLAIN_SECONDS = 30.0
_LIVE_SECONDS = 0.2
_RATE_SECONDS = 15.0  # the rate is that of about the last quarter of a minute


@dataclass(frozen=True, slots=True)
class Sums:
    """What is done and expected so far; sizes in bytes."""

    phase: str = ""
    size: int = 0
    files: int = 0
    stored: int = 0
    size_planned: int = 0
    files_planned: int = 0
    problems: int = 0


class Tally:
    """Adds up what a run tells; safe for many threads."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._phase = ""
        self._size = self._files = self._stored = 0
        self._size_planned = self._files_planned = self._problems = 0

    def plan(self, *, size: int = 0, files: int = 0) -> None:
        """Add to what is expected."""
        with self._lock:
            self._size_planned += size
            self._files_planned += files

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        """Add to what is done."""
        with self._lock:
            self._size += size
            self._files += files
            self._stored += stored

    def phase(self, name: str) -> None:
        """Note what the run does now."""
        with self._lock:
            self._phase = name

    def problem(self, path: bytes, reason: str) -> None:
        """Count and show a part that was skipped."""
        with self._lock:
            self._problems += 1
        self._output.problem(path, reason)

    def sums(self) -> Sums:
        """All of it at one moment."""
        with self._lock:
            return Sums(
                self._phase,
                self._size,
                self._files,
                self._stored,
                self._size_planned,
                self._files_planned,
                self._problems,
            )


class Pace:
    """Rate and time left, from sums seen at moments (steady seconds)."""

    def __init__(self, now: float) -> None:
        self._seen = [(now, 0)]
        self.started = now

    def see(self, now: float, size: int) -> None:
        """Note a sum; moments older than the window are forgotten, all but one."""
        self._seen.append((now, size))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_SECONDS:
            self._seen.pop(0)

    def rate(self) -> float:
        """Bytes a second over the window."""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def seconds_left(self, sums: Sums) -> float | None:
        """Seconds until the planned size is done; None when that is not known."""
        rate = self.rate()
        if not sums.size_planned or rate <= 0:
            return None
        return max(0, sums.size_planned - sums.size) / rate


def describe(sums: Sums, pace: Pace, now: float) -> str:
    """One line for people: phase, bytes, rate, time left."""
    size = show_size(sums.size)
    if sums.size_planned:
        size += f" of {show_size(max(sums.size_planned, sums.size))}"
    parts = [sums.phase or "working", size]
    if sums.files:
        parts.append(f"{sums.files:,} files")
    if pace.rate() > 0:
        parts.append(f"{show_size(pace.rate())}/s")
    left = pace.seconds_left(sums)
    parts.append(f"{show_seconds(left)} left" if left else f"{show_seconds(now - pace.started)}")
    return " · ".join(parts)


def progress_body(sums: Sums, pace: Pace, now: float) -> dict[str, Any]:
    """The same for a JSON line."""
    left = pace.seconds_left(sums)
    return {
        "phase": sums.phase,
        "size": sums.size,
        "size_planned": sums.size_planned,
        "files": sums.files,
        "files_planned": sums.files_planned,
        "stored": sums.stored,
        "problems": sums.problems,
        "seconds": round(now - pace.started, 3),
        "rate": round(pace.rate()),
        "seconds_left": None if left is None else round(left, 1),
    }


@contextmanager
def listening(output: Output) -> Iterator[Progress]:
    """A listener that shows itself as the output wants, until the block ends."""
    tally = Tally(output)
    show: _Plain | _Json | _Live
    if output.json:
        show = _Json(output)
    elif output.quiet:
        yield tally
        return
    else:
        show = _Live(output) if output.stderr.isatty() else _Plain(output)
    stop = threading.Event()
    ticker = threading.Thread(target=_tick, args=(tally, show, stop), daemon=True, name="progress")
    ticker.start()
    try:
        yield tally
    finally:
        stop.set()
        ticker.join()
        show.close()


def _tick(tally: Tally, show: _Plain | _Json | _Live, stop: threading.Event) -> None:
    pace = Pace(time.monotonic())
    while not stop.wait(show.seconds):
        now, sums = time.monotonic(), tally.sums()
        pace.see(now, sums.size)
        show.show(sums, pace, now)


class _Plain:
    """Off a terminal: a line every half minute."""

    seconds = 1.0

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next = 0.0

    def show(self, sums: Sums, pace: Pace, now: float) -> None:
        """Print when it is time."""
        self._next = self._next or pace.started + _PLAIN_SECONDS / 3
        if now >= self._next:
            self._next = now + _PLAIN_SECONDS
            self._output.note(describe(sums, pace, now))

    def close(self) -> None:
        """Nothing stays on the screen."""


class _Json:
    """Two lines a second, and none while nothing moves."""

    seconds = _JSON_SECONDS

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last = Sums()

    def show(self, sums: Sums, pace: Pace, now: float) -> None:
        """Print what changed."""
        if sums != self._last:
            self._last = replace(sums)
            self._output.event("progress", progress_body(sums, pace, now))

    def close(self) -> None:
        """Nothing to end."""


class _Live:
    """A bar that stays in its place; rich is imported only for it."""

    seconds = _LIVE_SECONDS

    def __init__(self, output: Output) -> None:
        from rich.console import Console  # noqa: PLC0415 -- 0.1 s that only a terminal pays
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415

        self._output, self._stderr = output, output.stderr
        console = Console(file=output.stderr, highlight=False, markup=False)
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        self._bars = Bars(*columns, console=console, transient=True, auto_refresh=False)
        self._task = self._bars.add_task("starting", total=None)
        self._bars.start()
        # While a bar lives, notes must go above it: rich takes stderr over for that.
        import sys  # noqa: PLC0415

        output.stderr = sys.stderr

    def show(self, sums: Sums, pace: Pace, now: float) -> None:
        """Draw the bar and its line."""
        total = max(sums.size_planned, sums.size) if sums.size_planned else None
        text = describe(sums, pace, now)
        self._bars.update(self._task, description=text, completed=sums.size, total=total)
        self._bars.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._bars.stop()
        self._output.stderr = self._stderr
