"""source test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.rules.sizes import show_size

_SIZES = frozenset({"size", "free"})
_DEFAULT = Everywhere()


def test(source: str, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Try whether a source can be reached and read, and say what would be backed up.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml.
    """
    desk = Desk(everywhere)
    table = desk.source_table(source)
    report = wiring.probe_source(
        source, table, environ=desk.environ, configuration=desk.configuration
    )
    kind = type(table).__struct_config__.tag
    desk.output.document("source", {"source": source, "kind": kind, "report": report})
    desk.output.line(f"{source}: can be backed up")
    desk.output.lines(describe(report))
    return 0


def describe(report: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """JSON values as indented lines for people."""
    lines = []
    for key, value in report.items():
        label = f"{indent}{show_text(str(key)).replace('_', ' ')}:"
        if isinstance(value, Mapping):
            lines += [label, *describe(value, indent + "  ")]
        elif isinstance(value, (list, tuple)):
            shown = ", ".join(show_text(str(item)) for item in value)
            lines.append(f"{label} {shown or 'none'}")
        else:
            lines.append(f"{label} {_show_value(str(key), value)}")
    return lines


def _show_value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in _SIZES:
        return show_size(value)
    return "unknown" if value is None else show_text(str(value))
