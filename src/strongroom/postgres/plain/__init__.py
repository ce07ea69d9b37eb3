"""Plain SQL: a logical snapshot written as `pg_dump` prints it, and a plain dump put back, never by psql."""
