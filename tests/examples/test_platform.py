"""The platform does what its backups are tested with: migrations, seeds, index, smoke tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.conftest import BACKEND, PLATFORM, House, new_house
from strongroom.config.loading import load
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group("examples")  # one worker: one server for all

_OBJECTS = (
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    " UNION SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace"
    " UNION SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    " UNION SELECT oid::text FROM pg_largeobject_metadata"
)


def test_migrations_go_up_down_and_up(house: House) -> None:
    house.alembic("upgrade", "head")
    once = set(house.ask(_OBJECTS))
    assert "No new upgrade operations" in house.alembic("check"), "models and migrations differ"
    house.alembic("downgrade", "base")
    left = {name for (name,) in house.ask(_OBJECTS)}
    assert {name for name in left if "alembic_version" not in str(name)} == set()
    house.alembic("upgrade", "head")
    assert set(house.ask(_OBJECTS)) == once


def test_each_migration_can_be_taken_back_with_data_in_it(copy: House) -> None:
    for steps in range(1, 5):
        copy.alembic("downgrade", "-1")
        assert copy.ask("SELECT count(*) FROM alembic_version") == [(0 if steps == 4 else 1,)]
    copy.alembic("upgrade", "head")
    assert copy.ask("SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


def test_alembic_reads_a_url_too(copy: House) -> None:
    url = copy.server.dsn_for(copy.database)
    parts = dict(part.split("=", 1) for part in url.split())
    address = f"postgresql://{parts['user']}@/{copy.database}?host={parts['host']}"
    said = copy.python(
        "-m", "alembic", "current", folder=BACKEND, DATABASE_URL=address, DB_NAME="none"
    )
    assert "0004 (head)" in said


def test_the_same_seed_makes_the_same_database_and_vault(
    server: EmbeddedServer, tmp_path: Path, lived_in: House
) -> None:
    again = new_house(server, tmp_path)
    again.seed("--migrate", "--size", "small")
    assert bytes_of(again.vault) == bytes_of(lived_in.vault)
    assert (
        compare_databases(server.dsn_for(lived_in.database), server.dsn_for(again.database)) == []
    )


def test_another_seed_makes_another(
    server: EmbeddedServer, tmp_path: Path, lived_in: House
) -> None:
    other = new_house(server, tmp_path)
    other.seed("--migrate", "--size", "small", "--seed", "1")
    assert bytes_of(other.vault) != bytes_of(lived_in.vault)
    differences = compare_databases(
        server.dsn_for(lived_in.database), server.dsn_for(other.database), definitions=False
    )
    assert any("clips" in one for one in differences)


def test_the_seeder_refuses_what_is_not_empty_or_not_migrated(house: House, copy: House) -> None:
    house.seed(status=1)
    before = bytes_of(copy.vault)
    copy.seed(status=1)
    copy.seed("--vault", status=1)
    assert bytes_of(copy.vault) == before
    assert copy.ask("SELECT count(*) FROM clips") == [(2000,)]


@pytest.mark.parametrize("size", ["-1", "0", "nan", "tiny", "1e9"])
def test_sizes_that_are_none(house: House, size: str) -> None:
    house.seed(f"--size={size}", status=2)


def test_a_days_work(copy: House) -> None:
    copy.seed("--change")
    assert copy.ask("SELECT count(*) FROM clips") == [(2020,)]
    assert copy.ask("SELECT count(*) FROM clips WHERE title LIKE '%(edited)'") == [(20,)]
    copy.smoke()


def test_a_deleted_index_is_rebuilt_and_a_second_time_nothing_changes(copy: House) -> None:
    rows = copy.ask("SELECT * FROM vault_files ORDER BY path")
    copy.do("DELETE FROM vault_files")
    copy.smoke(status=1)
    assert copy.rebuild() == "Counts(files=205, added=205, changed=0, removed=0)"
    assert copy.ask("SELECT * FROM vault_files ORDER BY path") == rows
    versions = copy.ask("SELECT path, xmin::text FROM vault_files ORDER BY path")
    assert copy.rebuild() == "Counts(files=205, added=0, changed=0, removed=0)"
    assert copy.ask("SELECT path, xmin::text FROM vault_files ORDER BY path") == versions
    copy.smoke()


def test_a_rebuild_finds_what_came_changed_and_went(copy: House) -> None:
    (copy.vault / "audits/000/000001.json").write_bytes(b'{"campaign_id": 7}')
    (copy.vault / "audits/000/000006.json").unlink()
    (copy.vault / "ml_features/new\nline.json").write_bytes(b'{"campaign_id": true}')
    (copy.vault / "ml_features/deep.json").write_bytes(b"[" * 200_000)
    (copy.vault / "ml_features/huge.json").write_bytes(b'{"campaign_id": 1' + b"0" * 30 + b"}")
    (copy.vault / "elsewhere").mkdir()
    (copy.vault / "elsewhere/not-ours").touch()
    assert copy.rebuild() == "Counts(files=207, added=3, changed=1, removed=1)"
    paths = "ARRAY['audits/000/000001.json', E'ml_features/new\\nline.json']::text[]"
    found = copy.ask(
        "SELECT campaign_id FROM vault_files WHERE path IN"
        f" (SELECT convert_to(p, 'UTF8') FROM unnest({paths}) p) ORDER BY path"
    )
    assert found == [(7,), (None,)]


def test_a_rebuild_that_fails_changes_nothing(copy: House) -> None:
    before = copy.ask("SELECT * FROM vault_files ORDER BY path")
    copy.do("ALTER TABLE vault_files ADD CHECK (size <> 5) NOT VALID")
    (copy.vault / "audits/000/000001.json").unlink()
    (copy.vault / "audits/five").write_bytes(b"12345")
    text = "from app.memory_vault.rebuild_index import rebuild; rebuild()"
    copy.python("-c", text, folder=BACKEND, status=1)
    assert copy.ask("SELECT * FROM vault_files ORDER BY path") == before


def test_the_runbooks_lines_work_as_they_stand_there(copy: House) -> None:
    text = "from app.memory_vault.rebuild_index import rebuild; rebuild()"
    assert copy.python("-c", text, folder=BACKEND) == ""
    text = "from app.memory_vault.storage import storage; print(storage.list_files('ml_features'))"
    said = copy.python("-c", text, folder=BACKEND)
    assert said.startswith("['ml_features/000/000000.json', ") and said.count(",") == 43


def test_smoke_tests_pass_on_what_is_whole(lived_in: House) -> None:
    said = lived_in.smoke()
    assert len(said.splitlines()) == 9
    assert all(line.startswith("ok ") for line in said.splitlines())


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        ("DELETE FROM audits", "FAIL tables"),
        ("UPDATE clips SET features = features[1:47] WHERE id = 1007", "FAIL vectors"),
        ("SELECT setval('clip_numbers', 1000)", "FAIL numbers"),
        ("DELETE FROM clips WHERE id = 1007", "FAIL views"),
        ("REFRESH MATERIALIZED VIEW clip_counts WITH NO DATA", "FAIL views"),
        ("SELECT lo_unlink(film) FROM campaign_films WHERE campaign_id = 3", "FAIL films"),
        ("DROP TABLE campaign_films", "FAIL migrations"),
        ("UPDATE alembic_version SET version_num = '0003'", "FAIL migrations"),
        ("UPDATE vault_files SET size = size + 1 WHERE folder = 'audits'", "FAIL index"),
        ("UPDATE vault_files SET campaign_id = NULL", "FAIL index"),
    ],
)
def test_smoke_tests_find_harm_in_the_database(copy: House, harm: str, found: str) -> None:
    copy.do(harm)
    assert found in copy.smoke(status=1)


def test_smoke_tests_find_harm_in_the_vault(copy: House) -> None:
    path = copy.vault / "clips_metadata/000/000003.json"
    facts = path.stat()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    said = copy.smoke(status=1)
    assert "FAIL index: 1 differences: different: b'clips_metadata/000/000003.json'" in said


def test_smoke_tests_say_that_the_database_is_not_there(copy: House) -> None:
    said = copy.python("smoke_tests.py", status=1, DB_NAME="nowhere")
    assert 'database "nowhere" does not exist' in said
    assert "Traceback" not in said


def test_smoke_tests_say_that_the_vault_is_not_there(copy: House) -> None:
    said = copy.python("smoke_tests.py", status=1, VAULT_ROOT="/no/such/vault")
    assert "FAIL vault" in said and "FAIL index" in said
    said = copy.python("smoke_tests.py", status=1, VAULT_ROOT="gdrive:/stakazo/memory_vault/")
    assert "is not on this machine" in said


def test_the_promises_are_the_runbooks() -> None:
    loaded = load(config=str(PLATFORM / "strongroom.toml"), environ={})
    database, vault = (loaded.configuration.source[name] for name in ("stakazo-db", "memory-vault"))
    assert loaded.configuration.timezone == "UTC"
    assert (database.schedule, vault.schedule) == ("0 2 * * *", "0 3 1 * *")
    said = [str(database.promise.rto), str(database.promise.keep)]
    said += [str(vault.promise.rto), str(vault.promise.keep)]
    assert said == ["4h", "30d", "24h", "12 months"] or said == ["4h", "30d", "1d", "12 months"]


def test_a_command_beside_an_embedded_server(tmp_path: Path) -> None:
    argv = [sys.executable, str(PLATFORM / "embedded.py"), "--vault-at", str(tmp_path / "v"), "--"]
    done = subprocess.run(
        [*argv, sys.executable, str(PLATFORM / "smoke_tests.py")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [*argv, "sh", "-c", "exit 7"], capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 7


def bytes_of(vault: Path) -> dict[bytes, tuple[int, str]]:
    """Every name with its time and digest."""
    found = {}
    for folder, _, names in os.walk(os.fsencode(vault)):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            relative = os.path.relpath(path, os.fsencode(vault))
            found[relative] = (os.stat(path).st_mtime_ns, digest)
    return found
