"""notify test, notify run, notify list."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.errors import NotFound, StrongroomError, Unreachable

if TYPE_CHECKING:
    from strongroom.rules.anomalies import Condition

PROMISE_MISSED = 10
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


def run(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Look at everything and tell what is to be told now, as `run-due` and `serve` do by themselves.

    Exit status 10 when something critical is wrong, 7 when a channel did not take what it was to tell.
    """
    from strongroom.cli.telling import Teller  # noqa: PLC0415

    desk = Desk(everywhere)
    teller = Teller(desk)
    with teller.about_repository(), desk.repository() as repository:
        teller.opened(repository)
        carried = teller.tell(repository, ping=True)
    if carried is None:
        raise Unreachable(
            "What is wrong could not be found out.",
            means="Nobody was told by this command.",
            do="Mend what is said above and run it again.",
        )
    status = Unreachable.exit_status if carried.faults else 0 if carried.well else PROMISE_MISSED
    body = {
        "wrong": [_wrong(one) for one in carried.wrong],
        "told": [
            {"key": one.key, "word": one.word, "channel": one.channel, "fault": one.fault}
            for one in carried.deliveries
        ],
        "missed": carried.missed,
        "pinged": carried.pinged,
        "elsewhere": carried.elsewhere,
    }
    desk.output.event("result", {"verb": "notify run", "exit": status, **body})
    for one in carried.wrong:
        desk.output.line(f"{one.severity.upper():8}  {one.key}: {show_text(one.what)}")
    for done in carried.deliveries:
        said = f"not by {done.channel}: {done.fault}" if done.fault else f"by {done.channel}"
        desk.output.line(f"{done.word:8}  {done.key}: {show_text(said)}")
    if not carried.wrong:
        desk.output.line("Nothing is wrong.")
    if carried.faults:
        desk.output.error_lines(
            Unreachable(
                f"Not everything was told: {carried.faults[0]}",
                means="What no channel took is tried again, and after three times by every channel.",
                do="Mend what is said above and run `strongroom notify test`.",
            )
        )
    return status


def list(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Say what is open: what was told, since when, and what nobody could be told yet."""
    from strongroom.cli.records import show_moment  # noqa: PLC0415
    from strongroom.operations.alerting import open_alerts  # noqa: PLC0415

    desk = Desk(everywhere)
    with desk.repository() as repository:
        desk.recorder.opened(repository)
        journal = desk.recorder.journal
        alerts = [] if journal is None else open_alerts(journal)
    body = [
        {
            "key": one.key,
            "raised": one.raised.isoformat(),
            "sent": None if one.sent is None else one.sent.isoformat(),
            "tried": one.tried,
            "host": one.host,
            **({} if one.condition is None else _wrong(one.condition)),
        }
        for one in alerts
    ]
    desk.output.document("notify", {"alerts": body})
    rows = [
        [
            one.key,
            show_moment(one.raised),
            "nobody yet" if one.sent is None else show_moment(one.sent),
            show_text("" if one.condition is None else one.condition.what),
        ]
        for one in alerts
    ]
    if rows:
        desk.output.table(["alert", "since", "told", "what"], rows)
    else:
        desk.output.note("No alert is open.")
    return 0


def _wrong(one: Condition) -> dict[str, Any]:
    return {
        "key": one.key,
        "source": one.source,
        "severity": one.severity,
        "what": one.what,
        "reasons": [*one.reasons],
        "do": one.do,
    }
