"""What every fault is injected into: the engine with small windows, so that a day takes 0.3 s."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future

import pytest

from strongroom.format import keyset as keysets
from strongroom.repository import check, reader
from strongroom.repository import session as sessions


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults there were, by sort, and how many sorts broke something."""
    sums: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "faults" and report.when == "call":
                    sums[value[0]] += value[1]
    if not sums:
        return
    terminalreporter.section("faults")
    for sort, count in sorted(sums.items()):
        terminalreporter.line(f"{count:9,}  {sort}")
    broken = len(terminalreporter.getreports("failed"))
    terminalreporter.line(f"{sums.total():9,}  faults and orders in all; {broken} tests failed")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept buffers of 64 KiB: nothing here is larger."""
    monkeypatch.setattr(sessions, "WINDOW", 64 * 1024)


class Inline(Executor):
    """An executor without threads: 100,000 checks of 60 kB would spend most of their time on them."""

    def __init__(self, *threads: object, **names: object) -> None:
        del threads, names

    def submit(
        self, call: Callable[..., object], /, *what: object, **how: object
    ) -> Future[object]:
        """Do it now."""
        done: Future[object] = Future()
        try:
            done.set_result(call(*what, **how))
        except BaseException as failure:
            done.set_exception(failure)
        return done


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers and checks that do everything in the thread that asks; signatures and session keys
    are seen once."""
    monkeypatch.setattr(reader, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(check, "ThreadPoolExecutor", Inline)
    verify, seen = keysets.verify, set[object]()

    def once(*what: object, **named: object) -> None:
        key = what, tuple(sorted(named.items()))
        if key not in seen:
            verify(*what, **named)  # type: ignore[arg-type]
            seen.add(key)

    monkeypatch.setattr(keysets, "verify", once)

    opened = functools.cache(keysets.open_session_key)
    monkeypatch.setattr(keysets, "open_session_key", opened)
