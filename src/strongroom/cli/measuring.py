"""Metrics are computed when a run has ended, and shown where the configuration says.

Rule: nothing that goes wrong here changes what came of the run; it is warned of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from strongroom.cli.names import show_text
from strongroom.config.model import listen_address

if TYPE_CHECKING:
    from strongroom.cli.desk import Desk
    from strongroom.observe.metrics import Board, Figures
    from strongroom.repository.repository import Repository


def measured(
    desk: Desk, repository: Repository, board: Board | None = None, *, fresh: bool = True
) -> None:
    """Compute, and show on `board` and in the textfile, as far as there are any. Not `fresh` where
    nothing has run."""
    textfile = desk.configuration.metrics.textfile
    if textfile is None and board is None:
        return
    try:
        from strongroom.observe.metrics import Board as Fresh  # noqa: PLC0415

        shown = Fresh() if board is None else board
        shown.show(compute(desk, repository, fresh=fresh))
        if textfile is not None:
            shown.write(textfile)
    except Exception as fault:  # whatever it is: the run itself is what it is
        desk.output.warning(f"the metrics are those of an earlier run: {show_text(str(fault))}")


def compute(desk: Desk, repository: Repository, *, fresh: bool = True) -> Figures:
    """The figures as they are now."""
    from strongroom.operations.measuring import figures  # noqa: PLC0415 -- numpy behind it

    recorder = desk.recorder
    if recorder.journal is None:
        recorder.opened(repository)
    assert recorder.journal is not None
    return figures(
        repository,
        recorder.journal,
        desk.configuration,
        now=desk.now,
        folder=recorder.folder,
        fresh=fresh,
    )


@contextmanager
def served(desk: Desk) -> Iterator[Board | None]:
    """The board that is served while the block lasts; None where none is. Busy, UsageError."""
    listen = desk.configuration.metrics.listen
    if listen is None:
        yield None
        return
    from strongroom.observe.metrics import Board, Endpoint  # noqa: PLC0415

    board = Board()
    host, port = listen_address(listen)
    endpoint = Endpoint(board, host, port)
    shown = f"[{host}]" if ":" in host else host
    desk.output.note(f"metrics at http://{shown}:{endpoint.port}/metrics")
    try:
        yield board
    finally:
        endpoint.close()


__all__ = ["compute", "measured", "served"]
