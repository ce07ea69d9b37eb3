"""Everything that knows PostgreSQL: servers, client tools, logical dumps and restores."""
