"""list [SOURCE]."""

from __future__ import annotations

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.records import SNAPSHOT_HEAD, SNAPSHOT_SIDES, snapshot_body, snapshot_row
from strongroom.errors import Damaged, StrongroomError

_DEFAULT = Everywhere()


def list_snapshots(
    source: str | None = None, /, *, expired: bool = False, everywhere: Everywhere = _DEFAULT
) -> int:
    """List backups, oldest first.

    Parameters
    ----------
    source
        Only those of this source.
    expired
        Those that were expired and can still be brought back (`undelete`), instead.
    """
    from strongroom.operations import browse  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    with desk.repository() as repository:
        listing = browse.list_snapshots(repository, source)
    damaged = [{"object": each.name, "reason": each.reason} for each in listing.damaged]
    shown = listing.expired if expired else listing.snapshots
    bodies = [snapshot_body(one, listing.fates.get(one.name)) for one in shown]
    desk.output.document("snapshots", {"snapshots": bodies, "damaged": damaged})
    if shown:
        desk.output.table(SNAPSHOT_HEAD, list(map(snapshot_row, shown)), SNAPSHOT_SIDES)
    elif not damaged:
        word = "expired backup" if expired else "backup"
        desk.output.note(f"There is no {word}{f' of {show_text(source)}' if source else ''} yet.")
    if not damaged:
        return 0
    desk.output.error_lines(_damaged(damaged))
    return Damaged.exit_status


def _damaged(damaged: list[dict[str, str]]) -> StrongroomError:
    names = ", ".join(each["object"] for each in damaged[:3])
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    return Damaged(f"Backups whose records do not open: {names}{more}.")
