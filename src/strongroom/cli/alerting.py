"""Whoever is to be told hears what is wrong, after what was run here.

Rule: nothing that goes wrong here changes what came of the run; it is warned of.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from strongroom import wiring
from strongroom.cli.names import show_text
from strongroom.errors import StrongroomError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strongroom.cli.desk import Desk
    from strongroom.observe.channels.web import Ping
    from strongroom.observe.telling import Announced
    from strongroom.repository.repository import Repository
    from strongroom.rules.alerts import Step


def alerted(desk: Desk, repository: Repository) -> None:
    """Tell what is wrong, and what is over; give a sign of life where nothing critical is wrong."""
    if not desk.configuration.notify:
        return
    from strongroom.operations.alerting import carry_out, carry_out_here  # noqa: PLC0415 -- numpy

    try:
        channels, pings = _channels(desk)
        recorder = desk.recorder
        if recorder.journal is None:
            recorder.opened(repository)
        assert recorder.journal is not None
        host = socket.gethostname()
        over = carry_out_here(
            [], channels, now=desk.now, host=host, place=desk.storage.url, recorder=recorder
        )
        said = carry_out(
            repository,
            recorder.journal,
            desk.configuration,
            channels,
            now=desk.now,
            host=host,
            recorder=recorder,
        )
        _show(desk, [*over, *said.steps])
        if said.well:
            _give_signs(desk, pings)
    except Exception as fault:  # whatever it is: the run itself is what it is
        desk.output.warning(f"what is wrong could not be told: {show_text(str(fault))}")


def unreached(desk: Desk, fault: StrongroomError) -> None:
    """Tell that the repository does not open."""
    if not desk.configuration.notify:
        return
    from strongroom.operations.alerting import carry_out_here, unreachable  # noqa: PLC0415

    try:
        channels, _ = _channels(desk)
        place = desk.storage.url
        steps = carry_out_here(
            [unreachable(place, fault)],
            channels,
            now=desk.now,
            host=socket.gethostname(),
            place=place,
            recorder=desk.recorder,
        )
        _show(desk, steps)
    except Exception as other:  # the failure itself is told anyway
        desk.output.warning(f"nobody could be told: {show_text(str(other))}")


def _channels(desk: Desk) -> tuple[list[Announced], list[Ping]]:
    """Those that can be made; one whose secret is not there silences no other."""
    channels: list[Announced] = []
    pings: list[Ping] = []
    for name in desk.configuration.notify:
        try:
            some, others = wiring.channels(desk.configuration, desk.environ, names=[name])
        except StrongroomError as fault:
            desk.output.warning(f"{name} is told nothing: {fault.what}")
        else:
            channels += some
            pings += others
    return channels, pings


def _show(desk: Desk, steps: Sequence[Step]) -> None:
    for step in steps:
        who = ", ".join(step.sent) or "nobody"
        desk.output.note(f"{step.word}: {show_text(step.condition.what)} Told: {who}.")
        for name, fault in step.faults.items():
            desk.output.warning(f"{name} did not take it: {show_text(fault)}")


def _give_signs(desk: Desk, pings: Sequence[Ping]) -> None:
    for ping in pings:
        try:
            ping.ping()
        except StrongroomError as fault:
            desk.output.warning(f"{ping.name}: {fault.what}")


__all__ = ["alerted", "unreached"]
