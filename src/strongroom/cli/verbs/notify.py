"""notify test."""

from __future__ import annotations

import socket
from contextlib import suppress

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.errors import NotFound, StrongroomError, Unreachable

_DEFAULT = Everywhere()


def test(*names: str, everywhere: Everywhere = _DEFAULT) -> int:
    """Send a test by every channel, and say what each answered.

    Exit status 7 when one did not take it.

    Parameters
    ----------
    names
        Only these channels.
    """
    from strongroom.observe.telling import tell  # noqa: PLC0415
    from strongroom.rules.anomalies import Condition  # noqa: PLC0415
    from strongroom.rules.messages import compose  # noqa: PLC0415

    desk = Desk(everywhere)
    known = desk.configuration.notify
    unknown = sorted(set(names) - set(known))
    if unknown or not known:
        raise NotFound(
            f"No channel is called {show_text(unknown[0])!r}." if unknown else "Nobody is told.",
            means="Nothing was sent.",
            do="Name who is told as [notify.NAME] in strongroom.toml (docs/how-to/be-told.md).",
        )
    channels, pings = wiring.channels(desk.configuration, desk.environ, names=names)
    host = socket.gethostname()
    message = compose(
        "test",
        Condition("test", "", "critical", "This is a test of notifications; nothing is wrong."),
        at=desk.now,
        since=desk.now,
        host=host,
        repository=desk.configuration.repository.url or "no repository",
    )
    key = frozenset({message.key})
    faults: dict[str, str] = {}
    with desk.recorded("notify", what="test of notifications") as run:
        for done in tell([message], channels, escalated=key, at=desk.now, host=host):
            faults[done.channel] = done.fault
        for ping in pings:
            faults[ping.name] = ""
            try:
                ping.ping()
            except StrongroomError as fault:
                faults[ping.name] = fault.what
        run.detail["taken"] = [name for name, said in faults.items() if not said]
        run.exit = Unreachable.exit_status if any(faults.values()) else 0
        with suppress(StrongroomError), desk.repository():
            pass  # opened, so that it can be recorded: a test must not fail for want of a repository
    rows = [{"channel": name, "taken": not fault, "fault": fault} for name, fault in faults.items()]
    desk.output.document("notify", {"channels": rows})
    for name, said in faults.items():
        desk.output.line(f"{'FAIL' if said else 'ok  '}  {name}{': ' * bool(said)}{said}")
    failed = sum(map(bool, faults.values()))
    if not failed:
        return 0
    desk.output.error_lines(
        Unreachable(
            f"{failed} of {len(faults)} channels did not take the test.",
            means="Alerts would not reach whoever listens there.",
            do="Mend what is said above and run `strongroom notify test` again.",
        )
    )
    return Unreachable.exit_status
