"""From parsed TOML to frozen values, finding every fault on the way, not only the first.

msgspec stops at the first fault; a person who mends a file wants all of them.
So each table is walked here, key by key: unknown keys with what was probably
meant, missing ones, values of the wrong kind. msgspec converts single values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo, fields

from strongroom.config.model import (
    CHECKS,
    READERS,
    SOURCE_NAME,
    AppriseTable,
    Commands,
    Configuration,
    FilesTable,
    JobTable,
    PagerDutyTable,
    PingTable,
    PostgresTable,
    SlackTable,
    SmtpTable,
)

Key = tuple[str, ...]
# Tables that hold one table a name, of a kind that its `type` says.
_KINDS: Mapping[str, Mapping[str, type[Struct]]] = {
    "source": {"postgres": PostgresTable, "files": FilesTable},
    "notify": {
        "smtp": SmtpTable,
        "slack": SlackTable,
        "pagerduty": PagerDutyTable,
        "apprise": AppriseTable,
        "ping": PingTable,
    },
}
_WORDS = {
    str: "text in quotes",
    int: "a whole number",
    bool: "true or false",
    tuple: "a list of texts",
    Mapping: "a table of texts",
}
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: at which key, in a sentence without the value (it may be secret)."""

    key: Key
    text: str


def build(document: Mapping[str, Any]) -> tuple[Configuration | None, list[Fault]]:
    """Build the configuration; None and every fault when there are faults."""
    faults: list[Fault] = []
    built = _table(Configuration, document, (), faults)
    return (None, faults) if faults or built is _MISSING else (cast(Configuration, built), [])


def _table(kind: type[Struct], table: Any, at: Key, faults: list[Fault]) -> Any:
    """Build one table; `_MISSING` after putting what is wrong into `faults`."""
    if not isinstance(table, Mapping):
        faults.append(Fault(at, f"must be a table, [{show_key(at)}]"))
        return _MISSING
    known = {field.name: field for field in fields(kind)}
    tag = kind.__struct_config__.tag_field
    before = len(faults)
    for name in table:
        if name not in known and name != tag:
            faults.append(Fault((*at, name), "is no key here" + _meant(name, known)))
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in table:
            values[name] = _value(kind, field, table[name], (*at, name), faults)
        elif field.required:
            faults.append(Fault((*at, name), "is missing"))
    if len(faults) > before:
        return _MISSING
    return kind(**values)


def _value(kind: type[Struct], field: FieldInfo, value: Any, at: Key, faults: list[Fault]) -> Any:
    wanted = _unwrap(field.type)
    if len(at) == 1 and at[0] in _KINDS:
        return _named(at[0], value, faults)
    if at == ("schedule", "job"):
        return _jobs(value, faults)
    if isinstance(wanted, type) and issubclass(wanted, Struct):
        return _table(wanted, value, at, faults)
    each = _each_table(wanted)
    if each is not None:
        return _tables(each, value, at, faults)
    try:
        converted = (
            _read_text(wanted, value) if wanted in READERS else msgspec.convert(value, field.type)
        )
        if (kind, field.name) in CHECKS:
            CHECKS[kind, field.name](converted)
        return converted
    except ValueError as fault:  # msgspec's ValidationError is one too
        known = isinstance(fault, msgspec.ValidationError)
        faults.append(Fault(at, _explain(wanted, value, field) if known else str(fault)))
        return _MISSING


def _each_table(wanted: Any) -> type[Struct] | None:
    """Of what tables a key holds a list, if it does."""
    inside = get_args(wanted)[:1] if get_origin(wanted) is tuple else ()
    kind = inside[0] if inside else None
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _tables(kind: type[Struct], value: Any, at: Key, faults: list[Fault]) -> Any:
    if not isinstance(value, list):
        faults.append(Fault(at, f"must be a list of tables, [[{show_key(at)}]]"))
        return _MISSING
    return tuple(_table(kind, table, (*at, str(n)), faults) for n, table in enumerate(value, 1))


def _named(holder: str, value: Any, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(Fault((holder,), f"must hold one table a name, [{holder}.NAME]"))
        return _MISSING
    return {name: _one(holder, name, table, faults) for name, table in value.items()}


def _one(holder: str, name: str, table: Any, faults: list[Fault]) -> Any:
    at, kinds = (holder, name), _KINDS[holder]
    if not SOURCE_NAME.fullmatch(name):
        faults.append(
            Fault(at, "a name is up to 64 letters, digits, `.`, `_`, `-`, the first no sign")
        )
    if not isinstance(table, Mapping):
        faults.append(Fault(at, f"must be a table, [{show_key(at)}]"))
        return _MISSING
    kind = table.get("type", _MISSING)
    choices = " or ".join(f'"{word}"' for word in kinds)
    if kind is _MISSING:
        faults.append(Fault((*at, "type"), f"is missing: {choices}"))
        return _MISSING
    if not isinstance(kind, str) or kind not in kinds:
        hint = _meant(kind, kinds) if isinstance(kind, str) else ""
        faults.append(Fault((*at, "type"), f"must be {choices}{hint}"))
        return _MISSING
    return _table(kinds[kind], table, at, faults)


def _jobs(value: Any, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(Fault(("schedule", "job"), "must hold one table a job, [schedule.job.NAME]"))
        return _MISSING
    for name in value:
        if not SOURCE_NAME.fullmatch(name):
            text = "a job's name is up to 64 letters, digits, `.`, `_`, `-`, the first no sign"
            faults.append(Fault(("schedule", "job", name), text))
    return {
        name: _table(JobTable, table, ("schedule", "job", name), faults)
        for name, table in value.items()
    }


def _read_text(wanted: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    return READERS[wanted](value)


def _unwrap(annotation: Any) -> Any:
    """The type inside `X | None` and `Annotated[X, …]`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrap(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inside = [part for part in get_args(annotation) if part is not type(None)]
        return _unwrap(inside[0]) if len(inside) == 1 else annotation
    return annotation


def _explain(wanted: Any, value: Any, field: FieldInfo) -> str:
    """What a plain value should have been."""
    if get_origin(wanted) is Literal:
        choices = get_args(wanted)
        shown = " or ".join(f'"{choice}"' for choice in choices)
        return f"must be {shown}" + (_meant(value, choices) if isinstance(value, str) else "")
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return _bounds(field.type)
    if wanted == Commands:
        hint = ", not one text" if isinstance(value, str) else ""
        return (
            "must be a list of commands, each a list of words"
            f'{hint}: [["systemctl", "stop", "NAME"], …]; there is no shell'
        )
    word = _WORDS.get(get_origin(wanted) or wanted, "of another kind")
    if get_origin(wanted) is tuple and isinstance(value, str):
        word += ', not one text: ["first", "second", …]'
    return f"must be {word}"


def _bounds(annotation: Any) -> str:
    """What a number may be, as its annotations say."""
    low = high = None
    while get_origin(annotation) in (Annotated, Union, UnionType):
        inside, *metas = get_args(annotation)
        for meta in metas:
            if isinstance(meta, msgspec.Meta):
                low = meta.ge if meta.ge is not None else low
                high = meta.le if meta.le is not None else high
        annotation = inside
    return f"must be between {low} and {high}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def show_key(key: Key) -> str:
    """A key as TOML writes it: source."odd name".path."""
    plain = SOURCE_NAME.fullmatch
    return ".".join(part if plain(part) and "." not in part else f'"{part}"' for part in key)
