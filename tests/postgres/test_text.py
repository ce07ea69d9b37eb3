"""What is read and written as text: names, globals, complaints, archives' heads. PURE."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Busy, DatabaseUnreachable, KeyRefused, Refused, StrongroomError
from strongroom.postgres.logical import archive, names
from strongroom.postgres.logical.roles import plan_roles, statements
from strongroom.postgres.logical.sink import Subset
from strongroom.postgres.logical.target import create_statement, dress_statements
from strongroom.postgres.logical.tool import tool_error, warnings
from strongroom.postgres.logical.verdict import complaints
from strongroom.postgres.server import Conninfo, literal, quoted

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES, NAMES)
def test_escaped_names_differ_and_hold_no_slash_or_dot(a: str, b: str) -> None:
    assert (names.escape(a) == names.escape(b)) == (a == b)
    assert not set(b"/.\0 ") & set(names.escape(a))


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32, "a\0b", "new\nline", "template1"])
def test_impossible_database_names_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        names.check_database_name(name)


@pytest.mark.parametrize(
    "name", ["-d", "host=evil", "--file=/x", "q\"uo'te", "ä" * 31, "a b", "%s"]
)
def test_odd_database_names_are_accepted(name: str) -> None:
    assert names.check_database_name(name) == name


def test_a_password_is_nowhere_to_be_seen() -> None:
    conninfo = Conninfo.parse("postgresql://me:s3cret@db:99/shop", password=None)
    shown = [repr(conninfo), conninfo.public(), conninfo.where, repr(conninfo.on("x"))]
    assert not any("s3cret" in text for text in shown)
    assert conninfo.child_environment()["PGPASSWORD"] == "s3cret"
    beside = Conninfo.parse("host=db", password="other")
    assert "other" not in beside.public()
    assert "password=other" in beside.text()


def test_a_dsn_that_does_not_parse_is_not_quoted() -> None:
    with pytest.raises(StrongroomError) as caught:
        Conninfo.parse("host=db password=s3cret nonsense")
    assert "s3cret" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["-d", "host=evil port=1", "--file=/x", "it's\\", "a b"])
def test_a_database_name_is_one_quoted_value(name: str) -> None:
    public = Conninfo.parse("host=db user=me").on(name).public()
    assert Conninfo.parse(public).parameters == {"host": "db", "user": "me", "dbname": name}


def test_quoting() -> None:
    assert quoted('a"b', "c") == '"a""b"."c"'
    assert literal("it's") == "'it''s'"
    assert literal("a\\'") == " E'a\\\\'''"


GLOBALS = """--
-- PostgreSQL database cluster dump
--
\\restrict abc

SET client_encoding = 'UTF8';
CREATE ROLE "here";
ALTER ROLE "here" WITH SUPERUSER PASSWORD 'x';
CREATE ROLE "we'ird "";x";
ALTER ROLE "we'ird "";x" WITH LOGIN PASSWORD 'SCRAM$;--';
COMMENT ON ROLE "we'ird "";x" IS E'line\\'; DROP ROLE "here";
\\! touch /tmp/owned
';
ALTER ROLE "we'ird "";x" SET "search_path" TO 'a', 'b c';
CREATE ROLE "group";
GRANT "group" TO "we'ird "";x" WITH ADMIN OPTION GRANTED BY "postgres";
GRANT "here" TO "else";
GRANT SET ON PARAMETER "work_mem" TO "group";
CREATE TABLESPACE "fast" OWNER "here" LOCATION '/disk';
GRANT ALL ON TABLESPACE "fast" TO "group";
\\unrestrict abc
"""


def test_only_missing_roles_are_made() -> None:
    plan = plan_roles(GLOBALS, ["here", "else"])
    assert plan.created == ("we'ird \";x", "group")
    assert plan.existing == ("here",)
    assert plan.tablespaces == ("fast",)
    assert [" ".join(s.split()[:3]) for s in plan.statements] == [
        "CREATE ROLE \"we'ird",
        "ALTER ROLE \"we'ird",
        "COMMENT ON ROLE",
        "ALTER ROLE \"we'ird",
        'CREATE ROLE "group"',
        'GRANT "group" TO',
        "GRANT SET ON",
    ]
    assert not any("SUPERUSER" in s or s.startswith(("DROP", "\\")) for s in plan.statements)
    assert "SCRAM" not in repr(plan)


@given(st.lists(st.sampled_from(["'a;b'", '"x;""y"', "E'\\';'", "word", "--c;\n", " ", "\n"])))
def test_statements_end_only_at_bare_semicolons(parts: list[str]) -> None:
    text = " ".join(parts)
    found = list(statements(text + " tail; next;"))
    assert len(found) == 2
    assert found[1] == "next"


SAID = """pg_restore: while PROCESSING TOC:
pg_restore: from TOC entry 215; 1259 16385 TABLE t bob
pg_restore: error: could not execute query: ERROR:  role "bob" does not exist
Command was: ALTER TABLE "public"."t" OWNER TO "bob";


pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"
Command was: SET transaction_timeout = 0;
pg_restore: from TOC entry 216; 0 0 INDEX i bob
pg_restore: error: could not execute query: ERROR:  could not create unique index "i"
DETAIL:  Key (a)=(1) is duplicated.
Command was: CREATE UNIQUE INDEX "i" ON "public"."t" USING "btree" ("a");
pg_restore: error: could not read from input file: end of file
pg_restore: warning: errors ignored on restore: 3
"""


def test_a_parameter_the_server_does_not_know_is_not_shown_as_a_cause() -> None:
    said = (
        "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter"
        ' "transaction_timeout"\nCommand was: SET transaction_timeout = 0;\n\n'
        'pg_restore: error: COPY failed for table "t": ERROR:  it broke\n'
    )
    fault = tool_error("pg_restore", 1, said, Conninfo.parse("dbname=d host=h"))
    assert "it broke" in fault.what
    assert "transaction_timeout" not in fault.what


def test_complaints_are_told_apart() -> None:
    found = complaints(SAID)
    assert [(c.harmless, c.about_rights, bool(c.command)) for c in found] == [
        (False, True, True),
        (True, False, True),
        (False, False, True),
        (False, False, False),
    ]
    assert "Key (a)=(1) is duplicated" in str(found[2])


def test_a_table_named_like_a_grant_is_no_matter_of_rights() -> None:
    said = (
        "pg_restore: error: could not execute query: ERROR:  syntax error\n"
        'Command was: CREATE TABLE "GRANT " (a int);\n'
    )
    assert not complaints(said)[0].about_rights


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("pg_dump: error: canceling statement due to lock timeout", Busy),
        (
            "pg_dump: error: connection to server failed: FATAL: password authentication failed",
            KeyRefused,
        ),
        ("pg_dump: error: query would be affected by row-level security policy", Refused),
        ("pg_dump: error: server closed the connection unexpectedly", DatabaseUnreachable),
        ("pg_dump: error: something new", StrongroomError),
    ],
)
def test_what_a_tool_says_becomes_our_error(said: str, kind: type[StrongroomError]) -> None:
    assert type(tool_error("pg_dump", 1, said, Conninfo({"dbname": "x"}))) is kind


def test_details_stay_with_their_message() -> None:
    said = "pg_dump: warning: one\npg_dump: detail: two\npg_dump: hint: three"
    assert warnings(said) == ["warning: one two three"]


def test_a_head_that_is_cut_is_told_from_one_that_is_wrong() -> None:
    with pytest.raises(archive.CutShortError):
        archive.read_contents(b"PGDMP\x01\x10\x00\x04\x08\x01")
    with pytest.raises(ValueError, match="not a pg_dump archive"):
        archive.read_contents(b"garbage that is long enough")
    with pytest.raises(ValueError, match="not known"):
        archive.read_contents(b"PGDMP\x02\x00\x00\x04\x08\x01")


def toc(*rows: tuple[int, str, str, tuple[int, ...]]) -> archive.Contents:
    entries = tuple(archive.TocEntry(i, tag, kind, "s", 2, deps) for i, kind, tag, deps in rows)
    return archive.Contents((1, 16), "18.6", entries)


def test_a_part_brings_what_it_needs_and_leaves_what_needs_the_rest() -> None:
    contents = toc(
        (1, "TYPE", "mood", ()),
        (2, "TABLE", "a", (1,)),
        (3, "TABLE", "b", ()),
        (4, "SEQUENCE", "a_id_seq", ()),
        (5, "SEQUENCE OWNED BY", "a_id_seq", (2, 4)),
        (6, "DEFAULT", "a id", (2, 4)),
        (7, "SEQUENCE", "lonely", ()),
        (8, "CONSTRAINT", "a a_pkey", (2,)),
        (9, "CONSTRAINT", "b b_pkey", (3,)),
        (10, "FK CONSTRAINT", "a a_b_fkey", (2, 9)),
        (11, "VIEW", "seen", (2, 3)),
        (12, "TABLE", "parted", ()),
        (13, "TABLE", "parted_1", ()),
        (14, "TABLE ATTACH", "parted_1", (12, 13)),
    )
    assert archive.select(contents, [("s", "a")]).ids == (1, 2, 4, 5, 6, 8)
    assert archive.select(contents, [("s", "parted")]).relations == {
        ("s", "parted"),
        ("s", "parted_1"),
    }
    assert archive.select(contents, [("s", "parted_1")]).ids == (1, 13)
    assert archive.select(contents, [("s", "seen")]).relations >= {("s", "a"), ("s", "b")}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("t", ("public", "t")),
        ("s.t", ("s", "t")),
        ('"a.b"."c""d"', ("a.b", 'c"d')),
        ('s."T"', ("s", "T")),
    ],
)
def test_tables_as_typed(text: str, parsed: tuple[str, str]) -> None:
    assert Subset.parse(tables=[text]).tables == (parsed,)


@pytest.mark.parametrize("text", ["a.b.c", '"a', "a.", ""])
def test_tables_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(Refused):
        Subset.parse(tables=[text])


def test_databases_are_made_alike() -> None:
    facts = {"encoding": "UTF8", "collate": "C", "ctype": "C", "provider": "b", "locale": "C.UTF-8"}
    statement = create_statement('x"y', facts, locale=None, version=180000)
    assert statement == (
        "CREATE DATABASE \"x\"\"y\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    )
    assert "LC_COLLATE 'other'" in create_statement("x", facts, locale="other", version=180000)
    dressed = list(
        dress_statements(
            "x",
            {
                "owner": 'o"',
                "comment": "it's",
                "connection_limit": 3,
                "public_may": ["CONNECT"],
                "privileges": [["r", "CREATE", True], ["r", "evil; DROP", False]],
            },
            owner=True,
        )
    )
    assert dressed == [
        'ALTER DATABASE "x" OWNER TO "o"""',
        "COMMENT ON DATABASE \"x\" IS 'it''s'",
        'ALTER DATABASE "x" CONNECTION LIMIT 3',
        'REVOKE TEMPORARY ON DATABASE "x" FROM PUBLIC',
        'GRANT CREATE ON DATABASE "x" TO "r" WITH GRANT OPTION',
    ]
