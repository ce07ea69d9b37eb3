"""Hostile dumps: none runs a command, none writes a file, each is refused with its line.

The server is run by a superuser on this machine: a `COPY … PROGRAM` that reached it would run.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from postgres.conftest import Databases
from postgres.plain.tools import put
from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.plain.executor import PlainRestore
from strongroom.postgres.plain.lexer import Lexer, RefusedSQLError

PLACE = tempfile.gettempdir().encode()
CANARY = PLACE + b"/strongroom-canary-%d" % os.getpid()
RUN = b"touch " + CANARY
R = b"\\restrict k3y\n\n"
END = b"\n\\unrestrict k3y\n\n"
T = b"SET search_path = public; CREATE TABLE t (a text);\n"

BACKSLASH = {
    "shell": b"\\! %s\n" % RUN,
    "shell in restricted": R + b"\\! %s\n" % RUN + END,
    "shell after a statement": b"SELECT pg_catalog.lo_create('1'); \\! %s\n" % RUN,
    "shell inside a statement": b"CREATE TABLE t (a int\n\\! %s\n);" % RUN,
    "shell after a comment": b"-- x\n\\! %s\n" % RUN,
    "shell after a name with a newline": b"-- Name: x\n\\! %s\n; Type: TABLE\n" % RUN,
    "shell after carriage returns": b"-- x\r\\! %s\r\n" % RUN,
    "shell after a nested comment": b"/* /* */ */ \\! %s\n" % RUN,
    "shell after a dollar quote": b"COMMENT ON SCHEMA public IS $a$ $b$ $a$\\! %s\n;" % RUN,
    "shell after COPY": T + b"COPY t FROM stdin;\nx\n\\.\n\\! %s\n" % RUN,
    "shell with a BOM": b"\xef\xbb\xbf\\! %s\n" % RUN,
    "copy program": T + b"\\copy t from program '%s'\n" % RUN,
    "copy to program": T + b"\\copy t to program '%s'\n" % RUN,
    "include": b"\\i /etc/passwd\n",
    "include relative": b"\\ir x.sql\n",
    "output pipe": b"\\o |%s\n" % RUN,
    "write": b"\\w |%s\n" % RUN,
    "gexec": b"SELECT 'x' \\gexec\n",
    "g pipe": b"SELECT 1 \\g |%s\n" % RUN,
    "gset": b"SELECT 1 AS x \\gset\n",
    "set with backquotes": b"\\set x `%s`\n" % RUN,
    "setenv": b"\\setenv PAGER '%s'\n" % RUN,
    "connect": b"\\connect other\n",
    "connect string": b"\\connect 'host=evil password=x'\n",
    "if": b"\\if true\n",
    "lo_import": b"\\lo_import '/etc/passwd'\n",
    "unrestrict with backquotes": R + b"\\unrestrict `%s`\n" % RUN,
    "unrestrict with more": R + b"\\unrestrict k3y `%s`\n" % RUN,
    "unrestrict and a command": R + b"\\unrestrict k3y \\! %s\n" % RUN,
    "unrestrict of a variable": R + b"\\unrestrict :x\n",
    "unrestrict quoted": R + b"\\unrestrict 'k3y'\n",
    "unrestrict with another token": R + b"\\unrestrict other\n",
    "unrestrict alone": b"\\unrestrict k3y\n",
    "command after unrestrict": R + END + b"\\! %s\n" % RUN,
    "statement after unrestrict": R + END + T,
    "comment after unrestrict": R + END + b"-- x\n",
    "restrict twice": R + R,
    "restrict after a statement": T + R,
    "restrict with backquotes": b"\\restrict `%s`\n" % RUN,
    "double backslash": T + b"\\\\\n",
    "backslash in a name's end": b'CREATE TABLE "a"\\! %s\n' % RUN,
    "something behind COPY": T + b"COPY t FROM stdin; SELECT 1;\nx\n\\.\n",
}
SERVER = {
    "COPY FROM PROGRAM": T + b"COPY t FROM PROGRAM '%s';" % RUN,
    "COPY FROM PROGRAM, comments": T + b"COPY/**/t/* /* */ */FROM--x\nPROGRAM'%s';" % RUN,
    "COPY FROM PROGRAM, case": T + b"cOpY public . t fRoM pRoGrAm E'%s';" % RUN,
    "COPY FROM PROGRAM, dollar": T + b"COPY t FROM PROGRAM $$%s$$;" % RUN,
    "COPY FROM PROGRAM, escapes": T + b"COPY t FROM PROGRAM U&'%s';" % RUN,
    "COPY FROM PROGRAM, columns": T + b'COPY "t" ("a") FROM PROGRAM \'%s\';' % RUN,
    "COPY TO PROGRAM": T + b"COPY t TO PROGRAM '%s';" % RUN,
    "COPY query TO PROGRAM": b"COPY (SELECT 'from stdin') TO PROGRAM '%s';" % RUN,
    "COPY TO a file": T + b"COPY t TO '%s';" % CANARY,
    "COPY FROM a file": T + b"COPY t FROM '/etc/passwd';",
    "COPY BINARY": T + b"COPY BINARY t FROM PROGRAM '%s';" % RUN,
    "COPY of a Unicode name": b"COPY U&\"\\0074\" FROM PROGRAM '%s';" % RUN,
    "COPY named stdin": b"COPY stdin FROM PROGRAM '%s';" % RUN,
    "two statements in one": T + b"COPY t FROM stdin\\; COPY t FROM PROGRAM '%s';" % RUN,
    "ALTER SYSTEM": b"ALTER SYSTEM SET archive_command = '%s';" % RUN,
    "LOAD": b"LOAD '/tmp/evil.so';",
}
STRICT = {
    "DO": b"DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''%s'''; END $$;" % RUN,
    "SELECT of a file": b"SELECT pg_catalog.pg_read_file('/etc/passwd');",
    "lo_export": b"SELECT pg_catalog.lo_export(1, '%s');" % CANARY,
    "lo_export inside": b"SELECT pg_catalog.setval(pg_catalog.lo_export(1, '%s'));" % CANARY,
    "INSERT with a call": T + b"INSERT INTO t VALUES (pg_read_file('/etc/passwd'));",
    "INSERT SELECT": T + b"INSERT INTO t SELECT pg_read_file('/etc/passwd');",
    "CREATE TABLE AS": b"CREATE TABLE t AS SELECT pg_read_file('/etc/passwd');",
    "filled view": b"CREATE MATERIALIZED VIEW v AS SELECT lo_export(1, '%s') WITH DATA;" % CANARY,
    "CREATE ROLE": b"CREATE ROLE evil SUPERUSER;",
    "ALTER ROLE": b"ALTER ROLE postgres PASSWORD 'x';",
    "ALTER DATABASE": b"ALTER DATABASE postgres SET search_path = evil;",
    "DROP DATABASE": b"DROP DATABASE postgres;",
    "CALL": b"CALL x();",
    "WITH": b"WITH x AS (SELECT lo_export(1, '%s')) SELECT 1;" % CANARY,
    "SET of another setting": b"SET session_preload_libraries = 'evil';",
    "SET ROLE": b"SET ROLE evil;",
    "hiding encoding": b"SET client_encoding = 'SJIS';",
    "strings by set_config": b"SELECT pg_catalog.set_config('standard_conforming_strings','off',false);",
    "CREATE SCHEMA with more": b"CREATE SCHEMA x CREATE TABLE t (a int) CREATE VIEW v AS SELECT 1;",
}
SO = b"'/tmp/evil.so', 'f'"
POWER = {
    "a function in C": b"CREATE FUNCTION public.f() RETURNS int LANGUAGE c AS %s;" % SO,
    "a function of the server": b"CREATE FUNCTION public.f(oid, text) RETURNS int LANGUAGE internal"
    b" AS 'be_lo_export';",
    "a function in Python": b"CREATE FUNCTION public.f() RETURNS int LANGUAGE plpython3u AS 'x';",
    "a default that writes": b"CREATE TABLE public.t (a int, b int DEFAULT lo_export(1, '%s'));"
    b" COPY public.t (a) FROM stdin;\n1\n\\.\n" % CANARY,
    "a program behind a table": b"CREATE FOREIGN TABLE public.t (a int) SERVER s"
    b" OPTIONS (program '%s');" % RUN,
    "a subscription": b"CREATE SUBSCRIPTION s CONNECTION 'host=evil' PUBLICATION p;",
}
# No rule about text finds this one: what it runs is in a string.
BODY = (
    b"CREATE FUNCTION public.f(a int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN EXECUTE"
    b" 'COPY (SELECT 1) TO PROGRAM ''%s'''; RETURN true; END $$;\n"
    b"CREATE TABLE public.t (a int CHECK (public.f(a)));\nCOPY public.t FROM stdin;\n1\n\\.\n" % RUN
)
CUT = {
    "quote": b"COMMENT ON SCHEMA public IS 'x",
    "name": b'CREATE TABLE "x',
    "dollar": b"COMMENT ON SCHEMA public IS $x$ ;",
    "comment": b"/* /* */ ;",
    "rows": T + b"COPY t FROM stdin;\nx\n",
    "statement": b"CREATE TABLE t (a int)",
    "restricted": R + T,
    "transaction": b"BEGIN;\n",
    "parenthesis": b"CREATE TABLE t (a int;",
}


@pytest.fixture(autouse=True)
def no_canary() -> Iterator[None]:
    yield
    assert not os.path.exists(CANARY), "a hostile dump ran a command or wrote a file"


def test_the_corpus_is_large() -> None:
    assert len(BACKSLASH) + len(SERVER) + len(STRICT) + len(CUT) >= 40


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", [*BACKSLASH, *SERVER])
def test_never_run(server18: EmbeddedServer, databases: Databases, name: str, trust: bool) -> None:
    script = BACKSLASH.get(name) or SERVER[name]
    with pytest.raises(Refused, match=r"line \d+"):
        put(server18, databases.make(server18), script, trust=trust)


@pytest.mark.parametrize("name", STRICT)
def test_not_run_unless_trusted(server18: EmbeddedServer, databases: Databases, name: str) -> None:
    with pytest.raises(Refused, match=r"line \d+"):
        put(server18, databases.make(server18), STRICT[name])


@pytest.mark.parametrize("name", POWER)
def test_what_acts_outside_the_database_needs_a_word(
    server18: EmbeddedServer, databases: Databases, name: str
) -> None:
    with pytest.raises(Refused, match=r"line \d+") as refused:
        put(server18, databases.make(server18), POWER[name])
    assert "--trust-code" in refused.value.do


def test_with_that_word_it_is_the_servers_to_say(
    server18: EmbeddedServer, databases: Databases
) -> None:
    database = databases.make(server18)
    script = b"CREATE FUNCTION public.f(text) RETURNS int LANGUAGE internal AS 'textlen';"
    put(server18, database, script, code=True)
    with server18.connect(database) as connection:
        assert connection.execute("SELECT public.f('four')").fetchone() == (4,)
    with pytest.raises(StrongroomError, match="could not access file"):
        script = b"SET check_function_bodies = true;" + POWER["a function in C"]
        put(server18, databases.make(server18), script, code=True)


def test_code_that_nobody_vouches_for_runs_as_nobody_who_can(
    server18: EmbeddedServer, databases: Databases
) -> None:
    with pytest.raises(Refused, match="Nobody vouches") as refused:
        put(server18, databases.make(server18), BODY, vouched=False)
    assert "--trust-code" in refused.value.do
    poor = databases.make(server18)
    with server18.connect(poor) as connection:
        connection.execute("CREATE ROLE hostile_poor LOGIN PASSWORD 'poor'")
        connection.execute("GRANT CREATE ON SCHEMA public TO hostile_poor")
    dsn = make_conninfo(server18.dsn_for(poor), user="hostile_poor", password="poor")
    with pytest.raises(StrongroomError, match="permission denied to COPY to or from an external"):
        PlainRestore(dsn, vouched=False).run(io.BytesIO(BODY).read)
    with server18.connect(poor) as connection:
        connection.execute("GRANT pg_execute_server_program TO hostile_poor")
    with pytest.raises(Refused, match="Nobody vouches"):
        PlainRestore(dsn, vouched=False, occupied=True).run(io.BytesIO(BODY).read)
    with server18.connect(poor) as connection:
        connection.execute("DROP OWNED BY hostile_poor; DROP ROLE hostile_poor")


@pytest.mark.parametrize("name", CUT)
def test_cut_short(server18: EmbeddedServer, databases: Databases, name: str) -> None:
    database = databases.make(server18)
    with pytest.raises(Damaged):
        put(server18, database, CUT[name])
    if name == "rows":
        with server18.connect(database) as connection:
            assert connection.execute("SELECT count(*) FROM public.t").fetchone() == (0,)


def test_backslashes_in_rows_and_strings_are_data(
    server18: EmbeddedServer, databases: Databases
) -> None:
    database = databases.make(server18)
    rows = b"\\\\! %s\n\\\\.\n\\N\n:x\n`%s`\n\\\\restrict x\n" % (RUN, RUN)
    script = R + T + b"COPY t FROM stdin;\n" + rows + b"\\.\n"
    script += b"COMMENT ON TABLE t IS '\\! x';\nCOMMENT ON COLUMN t.a IS $$\\! x$$;\n" + END
    assert put(server18, database, script).tables == {"t": 6}
    with server18.connect(database) as connection:
        found = [a for (a,) in connection.execute("SELECT a FROM t")]
    assert found[0] == "\\! " + RUN.decode() and found[1] == "\\." and found[2] is None


def test_an_error_stops_with_its_line_and_the_state(
    server18: EmbeddedServer, databases: Databases
) -> None:
    script = T + b"\n\nALTER TABLE t OWNER TO nobody_here;\n" + b"CREATE TABLE u (a int);\n"
    with pytest.raises(StrongroomError, match="Line 4: the server refused") as caught:
        put(server18, databases.make(server18), script)
    assert "2 statements up to line 4" in caught.value.means


def test_line_ends_of_every_kind(server18: EmbeddedServer, databases: Databases) -> None:
    script = (
        b"\xef\xbb\xbf-- x\r\n" + T.replace(b"\n", b"\r\n") + b"COPY t FROM stdin;\r\na\r\n\\.\r\n"
    )
    assert put(server18, databases.make(server18), script).tables == {"t": 1}


def test_nul_bytes(server18: EmbeddedServer, databases: Databases) -> None:
    with pytest.raises(Refused, match="NUL"):
        put(server18, databases.make(server18), b'CREATE TABLE "a\0b" (a int);')
    with pytest.raises(StrongroomError, match="0x00"):
        put(server18, databases.make(server18), T + b"COPY t FROM stdin;\na\0b\n\\.\n")


@pytest.mark.parametrize(
    ("head", "filling"),
    [(b'CREATE TABLE "', b"x"), (b"CREATE TABLE ", b"x"), (b"", b"/*"), (b"", b" ")],
)
def test_a_gigabyte_of_one_thing_is_bounded(head: bytes, filling: bytes) -> None:
    lexer = Lexer(limit=8 << 20)
    piece = filling * (1 << 19)
    fed = 0
    with pytest.raises(RefusedSQLError):
        list(lexer.feed(head))
        while fed < 1 << 30:
            list(lexer.feed(piece))
            fed += len(piece)
    assert fed < 16 << 20


def test_a_bomb_is_never_read_ahead_of_the_refusal(
    server18: EmbeddedServer, databases: Databases
) -> None:
    asked = 0

    def read(most: int) -> bytes:
        nonlocal asked
        asked += 1
        return b"\\! x\n" * (most // 5)

    with pytest.raises(Refused, match="line 1"):
        PlainRestore(server18.dsn_for(databases.make(server18))).run(read)
    assert asked < 16
