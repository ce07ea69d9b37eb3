"""Tell what is wrong from a command: with its channels, its clock, its recorder.

Rule: what cannot be told is said here and stops nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from strongroom import wiring
from strongroom.errors import Interrupted, StrongroomError, UsageError

if TYPE_CHECKING:
    from strongroom.cli.desk import Desk
    from strongroom.operations.alerting import Carried
    from strongroom.repository.repository import Repository


class Teller:
    """Tells for one command, by the channels of its configuration."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._opened = False
        self._said: set[str] = set()

    def opened(self, repository: Repository) -> None:
        """The repository is open: if it was not before, that is over."""
        self._opened = True
        self._desk.recorder.opened(repository)
        self._of_repository("")

    def tell(self, repository: Repository, *, ping: bool = False) -> Carried | None:
        """Tell what is to be told now; None where that could not be found out."""
        from strongroom.operations.alerting import carry_out  # noqa: PLC0415 -- numpy behind it

        desk = self._desk
        channels, pings, faults = wiring.working_channels(desk.configuration, desk.environ)
        for fault in faults:
            self._warn(fault.what)
        journal = desk.recorder.journal
        assert journal is not None
        try:
            carried = carry_out(
                repository,
                journal,
                desk.configuration,
                channels,
                now=desk.now,
                host=socket.gethostname(),
                recorder=desk.recorder,
                pings=pings if ping else (),
            )
        except Interrupted:
            raise
        except StrongroomError as fault:
            self._warn(f"nobody could be told what is wrong: {fault.what}")
            return None
        for said in carried.faults:
            self._warn(f"not told by {said}")
        for done in carried.deliveries:
            body = {"key": done.key, "word": done.word, "channel": done.channel}
            desk.output.event("told", {**body, "fault": done.fault})
        return carried

    @contextmanager
    def about_repository(self) -> Iterator[None]:
        """Tell, too, when the repository cannot be opened within."""
        self._opened = False
        try:
            yield
        except (Interrupted, UsageError):
            raise
        except StrongroomError as fault:
            if not self._opened:
                self._of_repository(fault.what)
            raise

    def _of_repository(self, fault: str) -> None:
        from strongroom.operations.alerting import tell_of_repository  # noqa: PLC0415

        desk = self._desk
        channels, _, _ = wiring.working_channels(desk.configuration, desk.environ)
        for done in tell_of_repository(
            desk.recorder.folder,
            channels,
            fault=desk.recorder.clean(fault),
            now=desk.now,
            host=socket.gethostname(),
            place=desk.storage.url,
        ):
            if done.fault:
                self._warn(f"not told by {done.fault}")

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._desk.output.warning(text)


__all__ = ["Teller"]
