"""metrics."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_name
from strongroom.errors import StrongroomError, UsageError

_DEFAULT = Everywhere()


def metrics(
    *,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Compute what Prometheus is told, and print it.

    `[metrics]` in strongroom.toml has it written when a run has ended, and served by `serve`.

    Parameters
    ----------
    output
        Replace this file instead, so that nobody reads half of it.
    """
    from strongroom.cli.measuring import compute  # noqa: PLC0415
    from strongroom.observe.metrics import PREFIX, Board, labelled, rows  # noqa: PLC0415

    if output is not None and not output.endswith(".prom"):
        raise UsageError(
            f"{show_name(output)} does not end in .prom, and node_exporter would not read it.",
            do="Give a name that does.",
        )
    desk = Desk(everywhere)
    with desk.repository() as repository:
        figures = compute(desk, repository)
    board = Board()
    board.show(figures)
    if output is not None:
        try:
            board.write(output)
        except OSError as fault:
            raise StrongroomError(
                f"{show_name(output)} cannot be written: {fault.strerror}.",
                means="Prometheus reads what was there before; the backups are untouched.",
                do="Give another file, or make its folder writable.",
            ) from None
    else:
        desk.output.lines(board.text().splitlines())
    samples = [
        {"name": PREFIX + name, "labels": labels, "value": value}
        for name, labels, value in labelled(rows(figures))
    ]
    desk.output.document("metrics", {"output": output, "samples": samples})
    return 0
