"""demo."""

from __future__ import annotations

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere

_DEFAULT = Everywhere()


def demo(*, small: bool = False, everywhere: Everywhere = _DEFAULT) -> int:
    """Back up and restore a made-up database and vault, compare everything, and report.

    Starts a PostgreSQL of its own; touches nothing of yours. Exit status 9 if anything differs.

    Parameters
    ----------
    small
        A tenth of the data, in a few seconds.
    """
    from strongroom.cli.demo import run  # noqa: PLC0415 -- a database server behind it

    return run(Desk(everywhere).output, small=small)
