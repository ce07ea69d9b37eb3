"""SIGINT and SIGTERM become `Interrupted`, raised where the main thread stands.

The first signal ends the run in order: what was uploaded stays to be used
again. A second one ends the process at once, because somebody means it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from strongroom.errors import Interrupted

_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def convert_signals() -> None:
    """Make both signals raise `Interrupted` in the main thread."""
    for number in _STATUS:
        signal.signal(number, _raise)


def collect_signals() -> threading.Event:
    """Make both signals set an event instead, for work that ends itself in order; the second ends
    the process at once."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        for each in _STATUS:
            signal.signal(each, _end_now)
        asked.set()

    for number in _STATUS:
        signal.signal(number, note)
    return asked


def interrupted(number: int) -> Interrupted:
    """The error for one of the two signals, with its exit status."""
    name = signal.Signals(number).name
    fault = Interrupted(f"Stopped by {name}.")
    fault.exit_status = _STATUS[signal.Signals(number)]  # type: ignore[misc]  # per signal
    return fault


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    for each in _STATUS:
        signal.signal(each, _end_now)
    raise interrupted(number)


def _end_now(number: int, frame: FrameType | None) -> None:
    del frame
    os._exit(_STATUS[signal.Signals(number)])
