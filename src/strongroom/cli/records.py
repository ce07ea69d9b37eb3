"""Snapshots, entries and differences as people and as JSON see them."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.rules.sizes import show_size

if TYPE_CHECKING:
    from strongroom.format.tree import Entry
    from strongroom.operations.browse import Difference
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.fates import Fate

ID_SHOWN = 12
_KIND_MODES = {
    "FILE": stat.S_IFREG,
    "HARDLINK": stat.S_IFREG,
    "STREAM": stat.S_IFREG,
    "DIRECTORY": stat.S_IFDIR,
    "SYMLINK": stat.S_IFLNK,
    "FIFO": stat.S_IFIFO,
    "CHARACTER": stat.S_IFCHR,
    "BLOCK": stat.S_IFBLK,
    "SOCKET": stat.S_IFSOCK,
}
_MARKS = {"added": "+", "removed": "-", "changed": "M", "metadata": "m"}
SNAPSHOT_HEAD = ("ID", "SOURCE", "TIME", "FILES", "SIZE", "NEW", "STORED", "SKIPPED", "LABELS")
SNAPSHOT_SIDES = "   rrrrr "


def show_moment(moment: datetime) -> str:
    """A moment to the second, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def snapshot_body(snapshot: Snapshot, fate: Fate | None = None) -> dict[str, Any]:
    """A snapshot as JSON values, with what was decided of it: times ISO 8601 in UTC, sizes in bytes."""
    until = None if fate is None or fate.held is None else fate.held.isoformat()
    return {
        "id": snapshot.id,
        "source": snapshot.source,
        "kind": snapshot.kind,
        "time": snapshot.time.astimezone(UTC).isoformat(),
        "started": snapshot.started.astimezone(UTC).isoformat(),
        "files": snapshot.files,
        "size": snapshot.size,
        "new_size": snapshot.new_size,
        "stored": snapshot.stored,
        "problems": snapshot.problems,
        "writer": snapshot.writer,
        "labels": dict(snapshot.labels),
        "held": fate is not None and (fate.for_good or fate.held is not None),
        "held_until": until,
    }


def snapshot_row(snapshot: Snapshot) -> tuple[str, ...]:
    """A snapshot as cells under `SNAPSHOT_HEAD`."""
    return (
        snapshot.id[:ID_SHOWN],
        show_text(snapshot.source),
        show_moment(snapshot.time),
        f"{snapshot.files:,}",
        show_size(snapshot.size),
        show_size(snapshot.new_size),
        show_size(snapshot.stored),
        str(snapshot.problems or "-"),
        show_labels(snapshot.labels),
    )


def show_labels(labels: Mapping[str, str]) -> str:
    """Labels as they are given: k=v k=v."""
    return " ".join(show_name(f"{key}={value}") for key, value in sorted(labels.items()))


def entry_body(entry: Entry) -> dict[str, Any]:
    """An entry as JSON values; `mode` in octal, `mtime_ns` in nanoseconds since 1970."""
    body: dict[str, Any] = {
        **path_fields(entry.path),
        "kind": entry.kind.name.lower(),
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.target:
        body["target"] = path_fields(entry.target)
    if entry.rdev:
        body["rdev"] = entry.rdev
    if entry.xattrs:
        body["xattrs"] = [path_fields(name) for name, _ in entry.xattrs]
    return body


def entry_line(entry: Entry) -> str:
    """An entry as a line like that of `ls -l`."""
    mode = stat.filemode(_KIND_MODES[entry.kind.name] | entry.mode)
    when = show_moment(datetime.fromtimestamp(entry.mtime_ns // 1_000_000_000, UTC))
    arrow = f" -> {show_name(entry.target)}" if entry.target else ""
    name = show_name(entry.path) or "."
    return f"{mode} {entry.uid:>5} {entry.gid:>5} {entry.size:>12} {when} {name}{arrow}"


def difference_body(difference: Difference) -> dict[str, Any]:
    """A difference as JSON values; `size` before and after, None where there is none."""
    before, after = difference.before, difference.after
    return {
        **path_fields(difference.path),
        "change": difference.change,
        "size_before": None if before is None else before.size,
        "size_after": None if after is None else after.size,
    }


def difference_line(difference: Difference) -> str:
    """A difference as a line: + added, - removed, M changed, m only its metadata."""
    return f"{_MARKS[difference.change]} {show_name(difference.path) or '.'}"
