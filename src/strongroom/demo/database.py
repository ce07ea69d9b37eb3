"""The demo's database: deterministic rows made by the server itself, so that making it is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

_SCHEMA = """
CREATE TYPE campaign_status AS ENUM ('draft', 'active', 'paused', 'done');
CREATE TABLE campaigns (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    status campaign_status NOT NULL DEFAULT 'draft',
    budget numeric(12, 2) CHECK (budget >= 0),
    settings jsonb NOT NULL DEFAULT '{}',
    created timestamptz NOT NULL
);
CREATE SEQUENCE clip_numbers START 1000 INCREMENT 7;
CREATE TABLE clips (
    id bigint PRIMARY KEY DEFAULT nextval('clip_numbers'),
    campaign_id bigint NOT NULL REFERENCES campaigns,
    title text NOT NULL,
    features real[] NOT NULL,
    metadata jsonb NOT NULL,
    checksum bytea,
    created timestamptz NOT NULL
);
CREATE TABLE orchestrator_runs (
    id bigint NOT NULL,
    started timestamptz NOT NULL,
    outcome text NOT NULL,
    log jsonb,
    PRIMARY KEY (id, started)
) PARTITION BY RANGE (started);
CREATE TABLE audits (
    id bigserial PRIMARY KEY,
    actor text NOT NULL,
    action text NOT NULL,
    detail jsonb,
    at timestamptz NOT NULL
);
CREATE FUNCTION campaign_age(c campaigns) RETURNS interval LANGUAGE sql STABLE
    RETURN timestamptz '2026-12-01 00:00+00' - c.created;
CREATE VIEW active_campaigns AS
    SELECT id, name, budget, campaign_age(campaigns) AS age FROM campaigns WHERE status = 'active';
"""

_PARTITION = """
CREATE TABLE orchestrator_runs_2026_{month:02} PARTITION OF orchestrator_runs
    FOR VALUES FROM ('2026-{month:02}-01 00:00+00') TO ('{year}-{after:02}-01 00:00+00')
"""

_CAMPAIGNS = """
INSERT INTO campaigns (name, status, budget, settings, created)
SELECT 'Campaign ' || n, (enum_range(NULL::campaign_status))[1 + n % 4],
       round((random() * 90000)::numeric, 2),
       jsonb_build_object('channels', jsonb_build_array('mail', 'video', n % 17), 'cap', n % 100),
       timestamptz '2026-01-01 00:00+00' + n * interval '7 minutes'
  FROM generate_series(1, 2000) AS n
"""

_CLIPS = """
INSERT INTO clips (campaign_id, title, features, metadata, checksum, created)
SELECT 1 + n %% 2000, 'Clip ' || n || ' of the collection ' || n %% 331,
       ARRAY(SELECT round(random()::numeric, 4)::real FROM generate_series(1, 48) WHERE n > 0),
       jsonb_build_object('codec', (ARRAY['h264', 'av1', 'vp9'])[1 + n %% 3], 'frames', n %% 9000,
                          'tags', jsonb_build_array('t' || n %% 97, 't' || n %% 89),
                          'source', 'https://cdn.stakazo.example/clips/' || n || '/master.m3u8'),
       sha256(n::text::bytea),
       timestamptz '2026-01-01 00:00+00' + n * interval '97 seconds'
  FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""

_RUNS = """
INSERT INTO orchestrator_runs
SELECT n, timestamptz '2026-01-01 00:00+00' + (n %% 364) * interval '1 day' + n * interval '1 ms',
       (ARRAY['done', 'retried', 'failed'])[1 + n %% 3],
       jsonb_build_object('worker', n %% 23, 'steps', jsonb_build_array('fetch', 'rank', 'post'),
                          'message', repeat('step ' || n || ' ', 6))
  FROM generate_series(1, %(count)s::int) AS n
"""

_AUDITS = """
INSERT INTO audits (actor, action, detail, at)
SELECT 'user' || n %% 311, (ARRAY['login', 'edit', 'publish', 'delete'])[1 + n %% 4],
       jsonb_build_object('ip', '10.0.' || n %% 255 || '.' || n %% 251, 'object', n),
       timestamptz '2026-01-01 00:00+00' + n * interval '31 seconds'
  FROM generate_series(1, %(count)s::int) AS n
"""

_LARGE_OBJECTS = """
SELECT lo_from_bytea(0, convert_to(repeat('large object ' || n || chr(10), 20000), 'UTF8'))
  FROM generate_series(1, 12) AS n
"""

_INDEXES = """
CREATE INDEX ON clips (campaign_id, created);
CREATE INDEX ON clips USING gin (metadata jsonb_path_ops);
CREATE MATERIALIZED VIEW clip_counts AS
    SELECT campaign_id, count(*) AS clips, max(created) AS newest FROM clips GROUP BY campaign_id;
CREATE UNIQUE INDEX ON clip_counts (campaign_id);
COMMENT ON TABLE clips IS 'What was cut out of the campaigns'' films';
"""


def fill(connection: psycopg.Connection[Any], *, clips: int, runs: int, audits: int) -> None:
    """Make the schema and its rows in an empty database; `connection` is in autocommit."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = public")
        connection.execute("SET LOCAL timezone = 'UTC'")
        connection.execute("SELECT setseed(0.4711)")
        connection.execute(_SCHEMA)
        for month in range(1, 13):
            year, after = (2027, 1) if month == 12 else (2026, month + 1)
            connection.execute(_PARTITION.format(month=month, year=year, after=after))
        connection.execute(_CAMPAIGNS)
        connection.execute(_CLIPS, {"first": 1, "last": clips})
        connection.execute(_RUNS, {"count": runs})
        connection.execute(_AUDITS, {"count": audits})
        connection.execute(_LARGE_OBJECTS)
        connection.execute(_INDEXES)


def change(connection: psycopg.Connection[Any], *, clips: int) -> None:
    """A day's work: the newest hundredth of the clips edited, another hundredth appended."""
    share = max(1, clips // 100)
    with connection.transaction():
        connection.execute("SET LOCAL search_path = public")
        connection.execute("SET LOCAL timezone = 'UTC'")
        connection.execute("SELECT setseed(0.815)")
        newest = "SELECT id FROM clips ORDER BY id DESC LIMIT %(share)s"
        edit = f"UPDATE clips SET title = title || ' (edited)' WHERE id IN ({newest})"  # noqa: S608
        connection.execute(edit, {"share": share})
        connection.execute(_CLIPS, {"first": clips + 1, "last": clips + share})
        connection.execute("REFRESH MATERIALIZED VIEW clip_counts")


def scatter(connection: psycopg.Connection[Any]) -> None:
    """One clip in a hundred edited, all over the table."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = public")
        connection.execute("UPDATE clips SET title = title || '!' WHERE id % 100 = 3")
