"""Which statements of a plain dump are run: those that pg_dump writes, and no others.

PURE. Source: what src/bin/pg_dump/pg_dump.c and pg_backup_archiver.c emit. The rule looks at tokens,
never at text, so that comments, quoting and letter case hide nothing. It keeps a dump from
reaching for files, programs and settings by itself.

`never` is run by nobody, `strange` is what pg_dump does not write, `power` is what it does write,
rarely, and what brings machine code, files of the server or other servers into play: a clean dump
of a database without such parts has none of it. What functions of the dump do once they exist (in
an index, a default, a materialized view) runs with the rights of the role that restores: no rule
about text can hold that, and whoever runs a dump that nobody vouches for needs a role without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from strongroom.postgres.plain.lexer import MOST_TOKENS

Tokens = Sequence[bytes]

_SETTINGS = frozenset(
    (
        b"statement_timeout",
        b"lock_timeout",
        b"idle_in_transaction_session_timeout",
        b"transaction_timeout",
        b"client_encoding",
        b"standard_conforming_strings",
        b"check_function_bodies",
        b"xmloption",
        b"client_min_messages",
        b"row_security",
        b"default_tablespace",
        b"default_table_access_method",
        b"default_with_oids",
        b"search_path",
        b"escape_string_warning",
        b"extra_float_digits",
    )
)
# Encodings in which a backslash or a quote can be the second byte of a letter.
_HIDING = frozenset((b"sjis", b"big5", b"gbk", b"uhc", b"gb18030", b"johab", b"shift_jis_2004"))
_FUNCTIONS = frozenset(
    (b"set_config", b"setval", b"lo_create", b"lo_open", b"lowrite", b"lo_close", b"lo_unlink")
)
_STATISTICS = frozenset(
    (b"pg_restore_relation_stats", b"pg_restore_attribute_stats", b"pg_restore_extended_stats")
)
_MAKES = frozenset(
    b"access aggregate cast collation constraint conversion domain event extension foreign function"
    b" index language materialized operator policy procedural procedure publication rule schema"
    b" sequence server statistics subscription table text transform trigger trusted type unique"
    b" unlogged user view default recursive".split()
)
_CHANGES = frozenset(
    b"aggregate collation conversion default domain event extension foreign function index language"
    b" large materialized operator policy procedural procedure publication routine rule schema"
    b" sequence server statistics subscription table text trigger type user view".split()
)
_DROPS = _CHANGES | {b"access", b"cast", b"transform"}
# Languages whose functions cannot leave the database, but for what their role may do in SQL.
_TRUSTED = frozenset((b"sql", b"plpgsql", b"plperl", b"pltcl", b"plv8", b"java"))
_SERVER_FILES = frozenset(
    b"lo_import lo_export pg_read_file pg_read_binary_file pg_ls_dir pg_stat_file pg_file_write"
    b" pg_file_rename pg_file_unlink pg_file_sync pg_reload_conf pg_rotate_logfile".split()
)
_FILE_OPTIONS = frozenset((b"program", b"filename"))
# What PostgreSQL leaves to superusers because functions in C are called by it unchecked.
_MACHINE = {
    (b"access", b"method"): "an access method",
    (b"conversion",): "a conversion",
    (b"default", b"conversion"): "a conversion",
    (b"operator", b"class"): "an operator class",
    (b"text", b"search", b"parser"): "a text search parser",
    (b"text", b"search", b"template"): "a text search template",
    (b"transform",): "a transform",
}
_GRANTED = frozenset(
    b"table sequence function procedure routine schema type domain language large foreign".split()
)
_LITERAL = re.compile(rb"E?'.*'|[0-9].*|null|true|false|default|[bxn]", re.DOTALL)
_NAME = re.compile(rb'".*"|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*', re.DOTALL)


def never(found: Tokens) -> str | None:
    """Say why a statement is not run in any mode; None when it may be."""
    head = found[:2]
    if head[:1] == (b"copy",) and not _is_plain_copy(found, loose=True):
        return "COPY with anything but rows out of the dump itself (a file, a program, a query)"
    if head == (b"alter", b"system"):
        return "ALTER SYSTEM changes the server, not the database"
    if head[:1] == (b"load",):
        return "LOAD brings a library into the server"
    return None


def strange(found: Tokens) -> str | None:
    """Say why a statement is none that pg_dump writes; None when it is one."""
    if not found:
        return "an empty statement"
    first = found[0]
    if len(found) >= MOST_TOKENS:
        return "a statement of more parts than are looked at"
    rule = _RULES.get(first)
    if rule is not None:
        return rule(found)
    shown = first.decode("utf-8", "replace").upper()
    return f"{shown[:30]} is no statement that pg_dump writes"


def power(found: Tokens) -> str | None:
    """Say what of the server a statement gives to the dump that made it; None when nothing."""
    if len(found) >= MOST_TOKENS:
        return "a statement of more parts than are looked at"
    for at in range(len(found) - 2) if b"u" in found else ():
        if tuple(found[at : at + 2]) == (b"u", b"&") and found[at + 2][:1] in (b'"', b"'"):
            return "a name or text in Unicode escapes, and pg_dump writes none"
    if found[0] not in (b"create", b"alter"):
        return None
    at, bare = 1, [_unquoted(token) for token in found]
    while found[at : at + 1] and found[at] in (b"or", b"replace", b"trusted", b"procedural"):
        at += 1
    kind = b"".join(found[at : at + 1])
    rule = _POWERS.get(kind, _unchecked)
    return rule(found, bare, at) or _reach(found, bare, kind)


def _reach(found: Tokens, bare: Sequence[bytes], kind: bytes) -> str | None:
    """What names functions of the server that leave the database, or files and programs."""
    for at, name in enumerate(bare):
        called = found[at + 1 : at + 2] == (b"(",) or found[at - 1] == b"="
        if name in _SERVER_FILES and called and found[at][:1] != b"'":
            return f"{_shown(name).lower()}, which reaches files or settings of the server"
        if kind in (b"foreign", b"server", b"user") and name in _FILE_OPTIONS:
            value = b"".join(found[at + 1 : at + 2])
            if value[:1] in (b"'", b"E", b"$"):
                return f"a foreign table over a {_shown(name).lower()} of the server"
    return None


def _function(found: Tokens, bare: Sequence[bytes], _: int) -> str | None:
    """A function whose language is none of the trusted ones. Without LANGUAGE it is SQL."""
    if found[0] == b"alter":
        return None
    depth = 0
    for at, token in enumerate(found):
        depth += (token == b"(") - (token == b")")
        if depth:
            continue
        if token == b"begin" and found[at + 1 : at + 2] == (b"atomic",):
            return None  # a body in SQL; the grammar has nothing behind it
        named = bare[at + 1] if at + 1 < len(bare) else b""
        if token == b"language" and named not in _TRUSTED and named != b"(":
            return f"a function in {_shown(named).lower()}, which runs outside the database's rules"
    return None


def _language(found: Tokens, bare: Sequence[bytes], at: int) -> str | None:
    if found[0] == b"alter" or (b"handler" not in found and bare[at + 1] in _TRUSTED):
        return None
    return "a procedural language that is not a trusted one"


def _subscription(found: Tokens, _: Sequence[bytes], __: int) -> str | None:
    if found[0] == b"alter":
        quiet = tuple(found[-4:-2]) == (b"owner", b"to")
    else:
        quiet = any(
            tuple(found[at : at + 3]) == (b"connect", b"=", b"false") for at in range(len(found))
        )
    return None if quiet else "a subscription that connects to another server"


def _unchecked(found: Tokens, bare: Sequence[bytes], at: int) -> str | None:
    """What calls functions in C with arguments that nobody checks."""
    if tuple(found[at : at + 3]) == (b"foreign", b"data", b"wrapper") and b"handler" in found:
        return "a foreign data wrapper of its own"
    if found[0] == b"alter":
        return None
    for words, what in _MACHINE.items():
        if tuple(found[at : at + len(words)]) == words:
            return f"{what}, whose functions the server calls unchecked"
    kind = b"".join(found[at : at + 1])
    if kind == b"type" and found[_name(found, at + 1)[1] :][:1] == (b"(",):
        return "a base type, whose functions the server calls unchecked"
    if kind == b"cast" and (b"without", b"function") in pairwise(found):
        return "a cast that takes the bytes of one type for another's"
    if kind == b"aggregate" and b"internal" in bare:
        return "an aggregate over an internal state, which the server takes unchecked"
    return None


_POWERS: dict[bytes, Callable[[Tokens, Sequence[bytes], int], str | None]] = {
    b"function": _function,
    b"procedure": _function,
    b"language": _language,
    b"subscription": _subscription,
}


def _unquoted(token: bytes) -> bytes:
    """A name as it is without its quotes; the same for a text of one word."""
    mark = token[:1]
    if len(token) > 1 and mark in (b'"', b"'") and token.endswith(mark):
        return token[1:-1]
    if token.startswith(b"E'"):
        return token[2:-1]
    return token


def about_rights(found: Tokens) -> str:
    """ "owner" or "privileges" when a statement says only that of an object, "" otherwise."""
    if found[0] in (b"grant", b"revoke"):
        return "privileges"
    if found[:3] == (b"alter", b"default", b"privileges"):
        return "privileges"
    if found[0] == b"alter" and tuple(found[-4:-2]) == (b"owner", b"to"):
        return "owner"
    return ""


def setting_of(found: Tokens) -> bytes:
    """The setting that a SET statement changes; b"" for other statements."""
    return found[1] if found[0] == b"set" and len(found) > 2 else b""


def table_of(found: Tokens) -> bytes:
    """The table of a COPY, as it is written there."""
    name, _ = _name(found, 1)
    return name


def _name(found: Tokens, at: int) -> tuple[bytes, int]:
    """A name with or without schema at `at`, and where it ends; b"" when there is none."""
    parts = []
    while at < len(found) and _NAME.fullmatch(found[at]):
        parts.append(found[at])
        at += 1
        if found[at : at + 1] != (b".",):
            return b".".join(parts), at
        at += 1
    return b"", at


def _is_plain_copy(found: Tokens, *, loose: bool = False) -> bool:
    """COPY name [(columns)] FROM stdin; and with `loose` any options behind."""
    name, at = _name(found, 1)
    if not name:
        return False
    if found[at : at + 1] == (b"(",):
        at += 1
        while at < len(found) and found[at] != b")":
            if not (_NAME.fullmatch(found[at]) or found[at] == b","):
                return False
            at += 1
        at += 1
    if tuple(found[at : at + 2]) != (b"from", b"stdin"):
        return False
    return loose or tuple(found[at + 2 :]) == (b";",)


def _copy(found: Tokens) -> str | None:
    return None if _is_plain_copy(found) else "COPY in a form that pg_dump does not write"


def _set(found: Tokens) -> str | None:
    if tuple(found[1:3]) == (b"session", b"authorization") and len(found) == 5:
        return None
    if len(found) < 5 or found[1] not in _SETTINGS or found[2] not in (b"=", b"to"):
        return "SET of something that pg_dump does not set"
    if found[1] == b"client_encoding":
        return encoding_fault(found[3])
    return None


def encoding_fault(value: bytes) -> str | None:
    """Say why statements in this client encoding cannot be told apart safely."""
    plain = value.strip(b"E'\"").lower().replace(b"_", b"").replace(b"-", b"")
    known = {name.replace(b"_", b"") for name in _HIDING}
    if plain in known or plain.startswith((b"shiftjis", b"mskanji", b"windows9")):
        return "a client_encoding in which a letter can hide a quote or backslash"
    return None


_UNLINK = (
    b"select pg_catalog . lo_unlink ( oid ) from pg_catalog . pg_largeobject_metadata where oid ="
).split()


def _select(found: Tokens) -> str | None:
    if list(found[:-2]) == _UNLINK and re.fullmatch(rb"'?[0-9]+'?", found[-2]):  # --if-exists
        return None
    at = 3 if tuple(found[1:3]) == (b"*", b"from") else 1
    called = tuple(found[at : at + 4])
    allowed = _STATISTICS if at == 3 else _FUNCTIONS
    if len(called) < 4 or called[:2] != (b"pg_catalog", b".") or called[3] != b"(":
        return "a SELECT that pg_dump does not write"
    if called[2] not in allowed or tuple(found[-2:]) != (b")", b";"):
        return "a SELECT that pg_dump does not write"
    arguments = found[at + 4 : -2]
    if called[2] == b"set_config":
        good = len(arguments) == 5 and arguments[0] == b"'search_path'"
        return None if good else "set_config of something other than search_path"
    for number, token in enumerate(arguments):
        if token in (b"(", b";"):
            return "a SELECT that pg_dump does not write"
        literal = _LITERAL.fullmatch(token) or token in (b",", b"-", b"::", b"[", b"]", b"=>")
        if not literal and at == 1 and not (number and arguments[number - 1] == b"::"):
            return "a SELECT that pg_dump does not write"
    return None


def _insert(found: Tokens) -> str | None:
    """INSERT INTO name [(columns)] [OVERRIDING SYSTEM VALUE] VALUES (literals)…"""
    fault = "an INSERT of something other than plain values"
    if found[1:2] != (b"into",):
        return fault
    _, at = _name(found, 2)
    if tuple(found[at : at + 3]) == (b"default", b"values", b";"):
        return None
    if found[at : at + 1] == (b"(",):
        while at < len(found) and found[at] != b")":
            at += 1
        at += 1
    if found[at : at + 1] == (b"overriding",):
        at += 3
    if found[at : at + 1] != (b"values",):
        return fault
    rest = list(found[at + 1 :])
    if tuple(rest[-5:]) == (b"on", b"conflict", b"do", b"nothing", b";"):
        rest = rest[:-5]
    marks = (b"(", b")", b",", b"-", b".", b";")
    return None if all(t in marks or _LITERAL.fullmatch(t) for t in rest) else fault


def _create(found: Tokens) -> str | None:
    at = 3 if tuple(found[1:3]) == (b"or", b"replace") else 1
    kind = found[at] if at < len(found) else b""
    if kind not in _MAKES:
        return f"CREATE {_shown(kind)} is none that pg_dump writes"
    kinds = found[at : at + 2]
    if b"table" in kinds and _at_depth_zero(found, b"as"):
        return "CREATE TABLE AS runs a query, and pg_dump writes none"
    if kind == b"materialized" and tuple(found[-4:]) != (b"with", b"no", b"data", b";"):
        return "a materialized view that is filled where pg_dump fills none"
    if kind == b"schema" and len(found) > 6 + (found[2:3] == (b"if",)) * 3:
        return "CREATE SCHEMA with statements inside"
    return None


def _alter(found: Tokens) -> str | None:
    kind = found[1] if len(found) > 1 else b""
    return None if kind in _CHANGES else f"ALTER {_shown(kind)} is none that pg_dump writes"


def _drop(found: Tokens) -> str | None:
    kind = found[1] if len(found) > 1 else b""
    return None if kind in _DROPS else f"DROP {_shown(kind)} is none that pg_dump writes"


def _rights(found: Tokens) -> str | None:
    """GRANT or REVOKE of rights on what is in the database; not of roles, not on the server."""
    depth = 0
    for at, token in enumerate(found):
        depth += (token == b"(") - (token == b")")
        if token == b"on" and not depth:
            kind = found[at + 1] if at + 1 < len(found) else b""
            if kind in _GRANTED:
                return None
            return f"rights on a {_shown(kind).lower()}, and pg_dump writes none"
    return "the grant of a role, and pg_dump writes none"


def _comment(_: Tokens) -> str | None:
    return None


def _security(found: Tokens) -> str | None:
    return None if found[1:2] == (b"label",) else "a statement that pg_dump does not write"


def _refresh(found: Tokens) -> str | None:
    good = tuple(found[1:3]) == (b"materialized", b"view")
    return None if good else "a statement that pg_dump does not write"


def _transaction(found: Tokens) -> str | None:
    return None if len(found) == 2 else "a transaction with options, and pg_dump writes none"


def _do(_: Tokens) -> str | None:
    return "a DO block, and pg_dump writes none"


_RULES = {
    b"comment": _comment,
    b"grant": _rights,
    b"revoke": _rights,
    b"copy": _copy,
    b"set": _set,
    b"select": _select,
    b"insert": _insert,
    b"create": _create,
    b"alter": _alter,
    b"drop": _drop,
    b"security": _security,
    b"refresh": _refresh,
    b"begin": _transaction,
    b"commit": _transaction,
    b"do": _do,
}


def _at_depth_zero(found: Tokens, wanted: bytes) -> bool:
    depth = 0
    for token in found:
        depth += (token == b"(") - (token == b")")
        if token == wanted and not depth:
            return True
    return False


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "replace").upper()[:30]
