"""What a dump may ask of the server: what pg_dump writes of ordinary databases, and no more."""

from __future__ import annotations

import pytest

from strongroom.postgres.plain import policy
from strongroom.postgres.plain.lexer import MOST_TOKENS, tokens

F = "CREATE FUNCTION public.f(a text) RETURNS text "
ORDINARY = (
    F + "LANGUAGE sql AS 'SELECT 1';",
    F + "LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN END $$;",
    F + "AS $$ x $$ LANGUAGE plperl;",
    F + "LANGUAGE sql BEGIN ATOMIC SELECT language FROM t; END;",
    "CREATE FUNCTION language(language text) RETURNS text LANGUAGE sql RETURN 1;",
    "CREATE OR REPLACE PROCEDURAL LANGUAGE plpgsql;",
    "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ $$;",
    "ALTER FUNCTION f(a text) OWNER TO x;",
    "CREATE TYPE x AS (input text, output text);",
    "CREATE TYPE x;",
    "CREATE TYPE x AS RANGE (subtype = float8, subtype_diff = float8mi);",
    "CREATE CAST (timestamp without time zone AS x) WITH FUNCTION f(timestamp without time zone);",
    "CREATE AGGREGATE total (integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '0');",
    "CREATE OPERATOR public.@@ (FUNCTION = f, LEFTARG = text);",
    "CREATE OPERATOR FAMILY f USING btree;",
    "CREATE TABLE dblink (program text, filename text, language text, c text);",
    "CREATE FOREIGN DATA WRAPPER dummy;",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'h', dbname 'd');",
    "CREATE FOREIGN TABLE f (program text) SERVER s OPTIONS (schema_name 'x', table_name 'y');",
    "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (connect = false, slot_name = 's');",
    "ALTER SUBSCRIPTION s OWNER TO x;",
    "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f();",
    "CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;",
    "CREATE TEXT SEARCH DICTIONARY d (TEMPLATE = pg_catalog.simple);",
    "GRANT SELECT(a),UPDATE ON TABLE public.t TO x WITH GRANT OPTION;",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
    "GRANT ALL ON LARGE OBJECT 1 TO x;",
    "GRANT USAGE ON FOREIGN SERVER s TO x;",
    "COPY public.lo_import (a) FROM stdin;",
    "COMMENT ON TABLE t IS 'pg_read_file(';",
)
POWERFUL = {
    "in C": F + "AS '/tmp/evil.so', 'f' LANGUAGE c;",
    "in C, quoted": F + "LANGUAGE \"c\" AS 'evil', 'f';",
    "in C, as text": F + "LANGUAGE 'C' AS 'evil', 'f';",
    "in C, dollars": F + "LANGUAGE $$c$$ AS 'evil', 'f';",
    "in C, escapes": F + "LANGUAGE U&\"\\0063\" AS 'evil', 'f';",
    "in C, comments": "CREATE/**/OR REPLACE--x\nFUNCTION f() RETURNS int LANGUAGE/**/C AS 'e','f';",
    "in C, second": F + "LANGUAGE sql LANGUAGE c AS 'evil', 'f';",
    "in C, behind a setting": F + "SET a.b TO return LANGUAGE c AS 'evil', 'f';",
    "a procedure in C": "CREATE PROCEDURE p() LANGUAGE c AS 'evil', 'f';",
    "internal": F + "LANGUAGE internal AS 'lo_export';",
    "python": F + "LANGUAGE plpython3u AS $$ import os $$;",
    "perl, untrusted": F + "LANGUAGE plperlu AS $$ `id` $$;",
    "shell": F + "LANGUAGE plsh AS $$ #!/bin/sh $$;",
    "unknown language": F + "LANGUAGE whatever AS $$ $$;",
    "a language": "CREATE LANGUAGE evil HANDLER evil_handler;",
    "a trusted language with a handler": "CREATE TRUSTED LANGUAGE plpgsql HANDLER evil_handler;",
    "an untrusted language": "CREATE PROCEDURAL LANGUAGE plpython3u;",
    "a base type": "CREATE TYPE x (INPUT = int4in, OUTPUT = textout);",
    "a cast of bytes": "CREATE CAST (bigint AS text) WITHOUT FUNCTION;",
    "an aggregate": "CREATE AGGREGATE a (text) (SFUNC = x, STYPE = internal);",
    "an operator class": "CREATE OPERATOR CLASS o FOR TYPE text USING btree AS FUNCTION 1 f(text, text);",
    "an access method": "CREATE ACCESS METHOD m TYPE INDEX HANDLER h;",
    "a conversion": "CREATE DEFAULT CONVERSION c FOR 'UTF8' TO 'LATIN1' FROM f;",
    "a parser": "CREATE TEXT SEARCH PARSER p (START = a, GETTOKEN = b, END = c, LEXTYPES = d);",
    "a template": "CREATE TEXT SEARCH TEMPLATE t (LEXIZE = dsimple_lexize);",
    "a transform": "CREATE TRANSFORM FOR text LANGUAGE sql (FROM SQL WITH FUNCTION f(internal));",
    "a wrapper": "CREATE FOREIGN DATA WRAPPER w HANDLER h;",
    "a wrapper, changed": "ALTER FOREIGN DATA WRAPPER w HANDLER h;",
    "a program": "CREATE FOREIGN TABLE f (a text) SERVER s OPTIONS (program 'id');",
    "a program, quoted": 'CREATE FOREIGN TABLE f (a text) SERVER s OPTIONS ("program" $$id$$);',
    "a program, added": "ALTER FOREIGN TABLE f OPTIONS (ADD program E'id');",
    "a file": "CREATE FOREIGN TABLE f (a text) SERVER s OPTIONS (filename '/etc/passwd');",
    "a subscription": "CREATE SUBSCRIPTION s CONNECTION 'host=evil' PUBLICATION p;",
    "a subscription, on": "ALTER SUBSCRIPTION s ENABLE;",
    "a subscription, moved": "ALTER SUBSCRIPTION s CONNECTION 'host=evil';",
    "a default": "CREATE TABLE t (a int, b text DEFAULT pg_read_file('/etc/passwd'));",
    "a default, quoted": "CREATE TABLE t (a text DEFAULT pg_catalog.\"lo_export\"(1, '/tmp/x'));",
    "a check": "ALTER TABLE t ADD CHECK (pg_catalog.lo_export(1, a) = 1);",
    "a view": "CREATE MATERIALIZED VIEW v AS SELECT lo_import('/etc/passwd') WITH NO DATA;",
    "an operator": "CREATE OPERATOR ## (FUNCTION = lo_import, RIGHTARG = text);",
    "escapes": "CREATE TABLE t (a text DEFAULT U&\"pg_read\\005Ffile\"('/etc/passwd'));",
}
FOREIGN = {
    "a role": "GRANT pg_execute_server_program TO evil;",
    "a role back": "REVOKE x FROM y;",
    "rights on the server": "GRANT SET ON PARAMETER archive_command TO evil;",
    "rights on another database": "GRANT ALL ON DATABASE postgres TO evil;",
    "too much to look at": "INSERT INTO t VALUES " + "(1)," * MOST_TOKENS + "(pg_read_file('x'));",
}


def found(text: str) -> tuple[bytes, ...]:
    return tuple(tokens(text.encode()))


@pytest.mark.parametrize("text", ORDINARY)
def test_what_ordinary_dumps_hold_is_run(text: str) -> None:
    words = found(text)
    assert policy.never(words) is policy.strange(words) is policy.power(words) is None


@pytest.mark.parametrize("what", POWERFUL)
def test_what_acts_outside_the_database_is_told_from_it(what: str) -> None:
    words = found(POWERFUL[what])
    assert policy.power(words) is not None


@pytest.mark.parametrize("what", FOREIGN)
def test_what_pg_dump_does_not_write(what: str) -> None:
    assert policy.strange(found(FOREIGN[what])) is not None
