"""config check, show and schema."""

from __future__ import annotations

import json

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.output import error_body
from strongroom.config.building import show_key
from strongroom.config.loading import ConfigFaults
from strongroom.config.model import json_schema

_DEFAULT = Everywhere()


def check(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Name every fault in the configuration at once; nothing is contacted."""
    desk = Desk(everywhere)
    try:
        loaded = desk.loaded
    except ConfigFaults as fault:
        for place, text in fault.faults:
            desk.output.line(show_text(f"{place}: {text}"))
        count = len(fault.faults)
        fault.what = f"The configuration has {count} fault{'s' * (count != 1)}."
        desk.output.error_lines(fault)
        faults = [{"place": place, "fault": text} for place, text in fault.faults]
        desk.output.document("error", {**error_body(fault), "faults": faults})
        return fault.exit_status
    sources = list(loaded.configuration.source)
    desk.output.document("config-check", {"file": loaded.path, "sources": sources, "faults": []})
    place = loaded.path or "no file; defaults, environment and flags"
    desk.output.line(f"{place}: no fault; sources: {', '.join(sources) or 'none'}")
    return 0


def show(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Show each value and where it came from; secrets as references only."""
    desk = Desk(everywhere)
    loaded = desk.loaded
    values = [
        {"key": show_key(key), "value": value, "from": loaded.origin(key)}
        for key, value in loaded.values.items()
    ]
    desk.output.document("config", {"file": loaded.path, "values": values})
    rows = [
        (each["key"], json.dumps(each["value"], ensure_ascii=False), each["from"])
        for each in values
    ]
    desk.output.table(("KEY", "VALUE", "FROM"), [tuple(map(show_text, row)) for row in rows])
    return 0


def schema(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Print the JSON Schema of strongroom.toml."""
    del everywhere  # the schema is JSON whatever was asked for
    print(json.dumps(json_schema(), indent=2))
    return 0
