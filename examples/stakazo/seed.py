#!/usr/bin/env python3
"""Fill the platform's database and vault with made-up data: the same arguments, the same bytes.

    python seed.py --size small        2,000 clips, 200 files
    python seed.py --size demo         200,000 clips, 20,000 files (more than 200 MB of database)
    python seed.py --size 0.5          any other share of `demo`
    python seed.py --change            a day's work on top of it

The database must be migrated (`alembic upgrade head` in backend/, or --migrate here) and empty;
where it and the vault are comes from the environment (backend/app/settings.py, .../storage.py).
Every row and every file is made of its own number, so that none depends on how many there are.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
BACKEND = os.path.join(HERE, "backend")
sys.path.insert(0, BACKEND)

from app.memory_vault.rebuild_index import rebuild  # noqa: E402 -- found only now
from app.memory_vault.storage import FOLDERS, storage  # noqa: E402
from app.settings import make_engine  # noqa: E402

SCALES = {"small": 0.01, "demo": 1.0, "large": 8.0}
VECTOR = 48
FILMS = 12
# Far above what a young database hands out, so that the same seed makes the same numbers.
_FILM_OIDS = 900_000_001
_FIRST_CLIP, _CLIP_STEP = 1000, 7
_BEGINNING = 1_767_225_600  # 2026-01-01 00:00 UTC
_MINUTE, _DAY = 60, 86_400
_FLUSH = 512 * 1024

_FLOATS = [f"{number / 65536:.4f}" for number in range(65536)]
_UNPACK = struct.Struct(f"<{VECTOR}H").unpack
_CODECS = ("h264", "av1", "vp9", "hevc")
_STATUS = ("draft", "active", "paused", "done")
_OUTCOMES = ("done", "done", "done", "retried", "done", "failed")
_STEPS = ("fetch", "transcode", "embed", "rank", "schedule", "publish", "measure")
_ACTIONS = ("login", "edit", "publish", "delete", "export", "approve")
_BRANDS = ("Nordlicht", "Casa Olé", "Hōshi", "Blue Pine", "Émile & fils", "Tandem", "Ruta 9")
_SEASONS = ("spring launch", "summer sale", "back to school", "Día de Muertos", "winter film")
_SCENES = ("opening", "close-up", "crowd", "product turn", "sunset drive", "interview", "outtake")
_MOODS = ("calm", "loud", "warm", "bright", "slow motion", "hand-held", "“the long cut”")
_KINDS = {name: at for at, name in enumerate(("campaign", "clip", "run", "audit", "film", "file"))}


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many of each."""

    campaigns: int
    clips: int
    runs: int
    audits: int
    files: int

    @classmethod
    def of(cls, scale: float) -> Amounts:
        """The usual mixture; `scale` 1 is the demo."""
        return cls(
            max(20, int(2_000 * scale)),
            max(100, int(200_000 * scale)),
            max(100, int(150_000 * scale)),
            max(100, int(150_000 * scale)),
            max(50, int(20_000 * scale)),
        )


class Maker:
    """Makes rows in COPY's text form and documents as JSON, each out of its number."""

    def __init__(self, seed: int, campaigns: int) -> None:
        self._seed = seed << 96
        self._campaigns = campaigns
        self._chance = random.Random(0)

    def campaigns(self, first: int, last: int) -> Iterator[str]:
        """Rows of campaigns."""
        for n in range(first, last + 1):
            chance = self._of("campaign", n)
            brand, season = chance.choice(_BRANDS), chance.choice(_SEASONS)
            settings = (
                f'{{"channels":["mail","video","{chance.choice(_CODECS)}"],'
                f'"cap":{chance.randrange(100)},"pacing":{chance.choice(_FLOATS)}}}'
            )
            yield (
                f"{n}\t{brand} {season} {n}\t{chance.choice(_STATUS)}\t"
                f"{chance.randrange(9_000_000) / 100:.2f}\t{settings}\t{_at(n * 7 * _MINUTE)}\n"
            )

    def clips(self, first: int, last: int) -> Iterator[str]:
        """Rows of clips; numbers count from 1."""
        floats = _FLOATS
        for n in range(first, last + 1):
            chance = self._of("clip", n)
            draw = chance.getrandbits
            vector = ",".join([floats[at] for at in _UNPACK(chance.randbytes(2 * VECTOR))])
            digest = sha256(n.to_bytes(8, "big")).hexdigest()
            details = (
                f'{{"codec":"{_CODECS[draw(2)]}","frames":{draw(13)},'
                f'"tags":["t{draw(7)}","t{draw(6)}"],"score":{floats[draw(16)]},'
                f'"source":"https://cdn.stakazo.example/clips/{n}/master.m3u8"}}'
            )
            campaign = 1 + (n * 31 + draw(4)) % self._campaigns
            yield (
                f"{_FIRST_CLIP + (n - 1) * _CLIP_STEP}\t{campaign}\t"
                f"{_SCENES[n % 7]}, {_MOODS[draw(8) % 7]}, take {n}\t{{{vector}}}\t{details}\t"
                f"\\\\x{digest}\t{_at(n * 97)}\n"
            )

    def runs(self, first: int, last: int) -> Iterator[str]:
        """Rows of orchestrator runs, all over the year and so over all partitions."""
        for n in range(first, last + 1):
            draw = self._of("run", n).getrandbits
            steps = ",".join(
                f'{{"step":"{step}","ms":{draw(14)},"worker":"w{draw(5)}"}}' for step in _STEPS[:4]
            )
            log = f'{{"clip":{draw(18)},"steps":[{steps}],"message":"run {n} of queue {n % 23}"}}'
            started = _at(n % 364 * _DAY + draw(16), draw(19))
            yield f"{n}\t{started}\t{_OUTCOMES[draw(8) % 6]}\t{log}\n"

    def audits(self, first: int, last: int) -> Iterator[str]:
        """Rows of audits."""
        for n in range(first, last + 1):
            draw = self._of("audit", n).getrandbits
            detail = f'{{"ip":"10.{draw(4)}.{draw(8)}.{draw(8)}","object":{draw(20)}}}'
            yield (
                f"{n}\tuser{draw(9)}@stakazo.example\t{_ACTIONS[draw(8) % 6]}\t{detail}\t"
                f"{_at(n * 31)}\n"
            )

    def film(self, number: int) -> bytes:
        """A film: text at its head, bytes that do not compress behind it."""
        chance = self._of("film", number)
        return b"STAKAZO FILM %04d\n" % number * 4_000 + chance.randbytes(128 * 1024)

    def document(self, number: int, *, edited: bool = False) -> bytes:
        """A file of the vault, of 0.4 to 4 KB."""
        chance = self._of("file", number)
        draw = chance.getrandbits
        folder = FOLDERS[number % 5]
        length = 10 + draw(7)
        vector = ",".join([_FLOATS[at] for at in _shorts(chance.randbytes(2 * length))])
        state = '"edited":true,' if edited else ""
        events = ",".join(
            f'{{"at":"{_iso(number * _MINUTE + draw(15))}","actor":"user{draw(9)}@stakazo.example",'
            f'"action":"{_ACTIONS[draw(8) % 6]}","clip":{_FIRST_CLIP + draw(16) * _CLIP_STEP}}}'
            for _ in range(1 + draw(3))
        )
        return (
            f'{{"id":{number},"kind":"{folder}","schema_version":3,{state}'
            f'"campaign_id":{1 + number % self._campaigns},"events":[{events}],'
            f'"vector":[{vector}]}}\n'
        ).encode()

    def embedding(self, number: int, size: int) -> bytes:
        """A large binary file of features."""
        return self._of("file", 1 << 60 | number).randbytes(size)

    def _of(self, kind: str, number: int) -> random.Random:
        self._chance.seed(self._seed | _KINDS[kind] << 80 | number)
        return self._chance


def fill_database(amounts: Amounts, seed: int) -> None:
    """Fill a migrated, empty database, in one transaction."""
    make = Maker(seed, amounts.campaigns)
    engine = make_engine()
    try:
        with engine.begin() as connection:
            cursor = connection.connection.cursor()
            _prepare(cursor)
            indexes = _drop_indexes(cursor)
            _copy(cursor, "campaigns", make.campaigns(1, amounts.campaigns))
            _copy(cursor, "clips", make.clips(1, amounts.clips))
            _copy(cursor, "orchestrator_runs", make.runs(1, amounts.runs))
            _copy(cursor, "audits", make.audits(1, amounts.audits))
            for number in range(1, min(FILMS, amounts.campaigns) + 1):
                film = _FILM_OIDS + number
                cursor.execute("SELECT lo_from_bytea(%s, %s)", [film, make.film(number)])
                cursor.execute("INSERT INTO campaign_films VALUES (%s, %s)", [number, film])
            for definition in indexes:
                cursor.execute(definition)
            cursor.execute("SELECT setval('campaigns_id_seq', max(id)) FROM campaigns")
            cursor.execute("SELECT setval('audits_id_seq', max(id)) FROM audits")
            cursor.execute("SELECT setval('clip_numbers', max(id)) FROM clips")
            cursor.execute("REFRESH MATERIALIZED VIEW clip_counts")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    finally:
        engine.dispose()


def change_database(seed: int) -> None:
    """A day's work: the newest hundredth of the clips edited, another hundredth appended."""
    engine = make_engine()
    try:
        with engine.begin() as connection:
            cursor = connection.connection.cursor()
            _settle(cursor)
            cursor.execute("SELECT count(*), (SELECT count(*) FROM campaigns) FROM clips")
            clips, campaigns = cursor.fetchone() or (0, 0)
            share = max(1, clips // 100)
            cursor.execute(
                "UPDATE clips SET title = title || ' (edited)'"
                " WHERE id IN (SELECT id FROM clips ORDER BY id DESC LIMIT %s)",
                [share],
            )
            _copy(cursor, "clips", Maker(seed, campaigns).clips(clips + 1, clips + share))
            cursor.execute("SELECT setval('clip_numbers', max(id)) FROM clips")
            cursor.execute("REFRESH MATERIALIZED VIEW clip_counts")
    finally:
        engine.dispose()


def scatter_database() -> None:
    """One clip in a hundred edited, all over the table."""
    engine = make_engine()
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE clips SET title = title || '!' WHERE id %% 100 = 3")
    finally:
        engine.dispose()


def fill_vault(amounts: Amounts, seed: int) -> None:
    """Fill an empty vault: many documents, some large files, a name that is not UTF-8, a link."""
    storage.create()
    root = storage.root
    if any(_busy(root, folder) for folder in FOLDERS):
        raise SystemExit(f"seed.py: the vault {root} is not empty")
    make = Maker(seed, amounts.campaigns)
    for number in range(amounts.files):
        _put(root, _name(number), make.document(number), number)
    size = 4 * 1024 * 1024 if amounts.files >= 5_000 else 128 * 1024
    for number in range(4):
        _put(root, b"ml_features/embedding-%d.bin" % number, make.embedding(number, size), number)
    _put(root, b"audits/caf\xe9 \xff.log", b"a name that is not UTF-8\n", 0)
    latest = os.path.join(os.fsencode(root), b"campaign_history/latest")
    os.symlink(b"../audits/000", latest)
    os.utime(latest, (_BEGINNING, _BEGINNING), follow_symlinks=False)


def change_vault(seed: int) -> None:
    """A day's work: one file in a hundred edited, some new, some gone."""
    root = storage.root
    files = sum(name.endswith(".json") for name in storage.walk())
    make = Maker(seed, max(20, files // 10))
    for number in range(0, files, 100):
        if number % 1000 == 0:
            os.unlink(os.path.join(os.fsencode(root), _name(number)))
        else:
            _put(root, _name(number), make.document(number, edited=True), files + number)
    for number in range(files, files + max(1, files // 100)):
        _put(root, b"orchestrator_runs/%06d.json" % number, make.document(number), number)


def _prepare(cursor: Any) -> None:
    _settle(cursor)
    cursor.execute("SELECT to_regclass('public.campaign_films') IS NOT NULL")
    if cursor.fetchone() != (True,):
        raise SystemExit("seed.py: the database is not migrated: `alembic upgrade head` first")
    cursor.execute("SELECT EXISTS (SELECT FROM campaigns) OR EXISTS (SELECT FROM clips)")
    if cursor.fetchone() != (False,):
        raise SystemExit("seed.py: the database is not empty")


def _settle(cursor: Any) -> None:
    for setting in ("search_path = public", "timezone = 'UTC'", "maintenance_work_mem = '256MB'"):
        cursor.execute(f"SET LOCAL {setting}")


def _drop_indexes(cursor: Any) -> list[str]:
    """Take what only serves queries away for the load; return how to make it again."""
    cursor.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = 'clips'::regclass AND NOT indisunique ORDER BY 1"
    )
    found = cursor.fetchall()
    for name, _ in found:
        cursor.execute(f"DROP INDEX {name}")
    return [definition for _, definition in found]


def _copy(cursor: Any, table: str, rows: Iterator[str]) -> None:
    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
        block: list[str] = []
        size = 0
        for row in rows:
            block.append(row)
            size += len(row)
            if size >= _FLUSH:
                copy.write("".join(block))
                block.clear()
                size = 0
        copy.write("".join(block))


def _name(number: int) -> bytes:
    return os.fsencode(f"{FOLDERS[number % 5]}/{number // 1000:03d}/{number:06d}.json")


def _put(root: str, name: bytes, content: bytes, minute: int) -> None:
    """Write straight to the place: a seeder needs no fsync, and its times belong to the data."""
    path = os.path.join(os.fsencode(root), name)
    for attempt in (1, 2):
        try:
            with open(path, "wb") as file:
                file.write(content)
            break
        except FileNotFoundError:
            if attempt == 2:
                raise
            os.makedirs(os.path.dirname(path))
    at = _BEGINNING + minute * _MINUTE
    os.utime(path, (at, at))


def _busy(root: str, folder: str) -> bool:
    with os.scandir(os.path.join(root, folder)) as entries:
        return any(True for _ in entries)


def _shorts(raw: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(raw) // 2}H", raw)


def _at(seconds: int, micro: int = 0) -> str:
    """A moment of 2026 for COPY: `epoch` arithmetic is quicker than datetime, and as exact."""
    days, rest = divmod(seconds, _DAY)
    fraction = f".{micro:06d}" if micro else ""
    return (
        f"{_dates()[days % 364]} {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}{fraction}+00"
    )


def _iso(seconds: int) -> str:
    return _at(seconds).replace(" ", "T").replace("+00", "Z")


def _dates(made: list[str] = []) -> list[str]:  # noqa: B006 -- made once
    if not made:
        lengths = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
        made += [
            f"2026-{month:02}-{day:02}"
            for month, length in enumerate(lengths, 1)
            for day in range(1, length + 1)
        ]
    return made


def _migrate() -> None:
    from alembic import command  # noqa: PLC0415 -- only when asked for
    from alembic.config import Config  # noqa: PLC0415

    command.upgrade(Config(os.path.join(BACKEND, "alembic.ini")), "head")


def _scale(text: str) -> float:
    scale = SCALES[text] if text in SCALES else float(text)
    if not 0 < scale <= 1000:
        raise ValueError("out of range")
    return scale


def _amounts(asked: argparse.Namespace) -> Amounts:
    usual = Amounts.of(asked.size)
    parts = {
        name: getattr(asked, name) or getattr(usual, name)
        for name in ("campaigns", "clips", "runs", "audits", "files")
    }
    return Amounts(**parts)


def main(words: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Fill the Stakazo platform with made-up data.")
    parser.add_argument(
        "--size", type=_scale, default="small", help="small, demo, large, or a share of demo"
    )
    parser.add_argument("--seed", type=int, default=4711, help="another number, other data")
    for name in ("campaigns", "clips", "runs", "audits", "files"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"so many {name}")
    parser.add_argument("--migrate", action="store_true", help="`alembic upgrade head` first")
    parser.add_argument("--change", action="store_true", help="a day's work on what is there")
    parser.add_argument("--scatter", action="store_true", help="edit one clip in a hundred")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--database", action="store_true", help="the database only")
    only.add_argument("--vault", action="store_true", help="the vault only, without its index")
    asked = parser.parse_args(words)
    if asked.migrate:
        _migrate()
    if asked.scatter:
        scatter_database()
        return 0
    if not asked.vault:
        if asked.change:
            change_database(asked.seed)
        else:
            fill_database(_amounts(asked), asked.seed)
    if not asked.database:
        if asked.change:
            change_vault(asked.seed)
        else:
            fill_vault(_amounts(asked), asked.seed)
        if not asked.vault:
            counts = rebuild()
            print(f"vault index: {counts.files} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
