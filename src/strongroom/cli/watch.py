"""Waiting for time, signals and a child at once; and one child, run to its end.

SIGTERM and SIGINT are noted, SIGHUP too; nothing is raised. SIGCHLD only wakes the wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType

from strongroom.cli.signals import interrupted

_STOP = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS = 60.0  # seconds that a child has to stop in order before it is killed


class Watch:
    """The signals of this process, for as long as the block lasts."""

    def __init__(self, steady: Callable[[], float]) -> None:
        self.steady = steady
        self.stop: int | None = None
        self.hangup = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Watch:
        """Take the signals."""
        self._ready, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGHUP, signal.SIGCHLD):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them back."""
        signal.set_wakeup_fd(-1)
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # as signal.signal gave it
        os.close(self._ready)
        os.close(self._wake)

    def wait(self, seconds: float) -> None:
        """Wait so long, or until a signal comes."""
        select.select([self._ready], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._ready, 512):
                pass

    def check(self) -> None:
        """Raise `Interrupted` when somebody stopped us."""
        if self.stop is not None:
            raise interrupted(self.stop)

    def run(
        self,
        words: Sequence[str],
        *,
        environ: Mapping[str, str],
        stdout: int | None,
        grace: float,
        sign: Callable[[], bool],
        every: float,
    ) -> int:
        """Run a command line of this program to its end; return its exit status.

        When we are stopped it may go on for `grace` seconds; then, or when `sign` answers False, it is
        asked to stop in order.
        """
        argv = [sys.executable, "-m", "strongroom.cli.job", str(os.getpid()), *words]
        with subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True
        ) as child:
            try:
                return self._until_end(child, grace, sign, every)
            except BaseException:
                child.terminate()
                raise

    def _until_end(
        self, child: subprocess.Popen[bytes], grace: float, sign: Callable[[], bool], every: float
    ) -> int:
        signed = self.steady()
        stopped: float | None = None  # when we were told to stop
        asked: float | None = None  # when the child was
        while (status := child.poll()) is None:
            now = self.steady()
            if stopped is None and self.stop is not None:
                stopped = now
            if now >= signed + every:
                signed = now
                if not sign() and asked is None:
                    child.terminate()
                    asked = now
            if asked is None and stopped is not None and now >= stopped + grace:
                child.terminate()
                asked = now
            if asked is not None and now >= asked + _LAST_WORDS:
                child.kill()
            limits = [signed + every]
            if asked is not None:
                limits.append(max(asked + _LAST_WORDS, now + 1.0))
            elif stopped is not None:
                limits.append(stopped + grace)
            self.wait(min(limits) - now)
        return status

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number in _STOP:
            self.stop = self.stop or number
        elif number == signal.SIGHUP:
            self.hangup = True
