"""Write a golden report of a drill: the store with its leaf, the document, and both pages.

    python tests/golden/make_drill.py tests/golden/drill/NAME

As with golden repositories, none is ever written anew.

    store.tar.gz    the repository
    secret          the key file that opens it
    report.json     the signed document, as it was put
    report.md, report.html
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rooms import BIRTH, drawn, found, open_room, reader_keys
from strongroom.format.run import Run
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.repository.audit import AuditLog
from strongroom.repository.keyring import add_slot
from strongroom.repository.reports import Reports
from strongroom.rules.drill import Step, detail_of
from strongroom.rules.drill_report import html, markdown
from strongroom.storage.local import LocalStorage

RUN = "00112233445566aa"
STEPS = [
    Step("programs", "amber", 12, "PostgreSQL 15 is not on this machine; PostgreSQL 16.4 is taken"),
    Step(
        "restore", "green", 61_200, "2 databases, 14 tables, 1,204,311 rows of backup 0123456789ab"
    ),
    Step("rows", "red", 900, 'shop: "Übung|<b>".x has 1 rows, 2 were recorded'),
    Step("freshness", "skipped", 0, "no query is configured", demanded=False),
    Step("migrate", "skipped", 0, "not reached: rows did not hold"),
    Step("promise", "red", 0, "1 min 01 s, promised 1min: missed"),
]


def body() -> dict[str, Any]:
    """A report in which everything occurs."""
    return {
        "version": 1,
        "type": "drill",
        "repository": "/srv/<backups>",
        "run": RUN,
        "trigger": "schedule",
        "host": "db1",
        "user": "root (ada)",
        "program": "0.1.0",
        "started": BIRTH.isoformat(),
        "ended": (BIRTH + timedelta(seconds=70)).isoformat(),
        "source": "shop_db",
        "kind": "logical",
        "snapshot": "0123456789abcdef" * 4,
        "snapshot_time": BIRTH.isoformat(),
        "size": 1 << 30,
        "at": BIRTH.isoformat(),
        "chosen": "drawn out of 31 backups",
        "verdict": "red",
        "restore_ms": 61_200,
        "total_ms": 70_000,
        "target_seconds": 60,
        "steps": [step.as_json() for step in STEPS],
        "facts": {
            "server": "16.4",
            "tables": [
                {"database": "shop", "schema": "Übung|<b>", "name": "x", "rows": 1, "recorded": 2,
                 "by_index": None},
                {"database": "shop", "schema": "public", "name": "<script>alert(1)</script>",
                 "rows": 1_204_310, "recorded": None, "by_index": 1_204_310},
            ],
        },
    }  # fmt: skip


def make(place: Path) -> None:
    """Write the golden report `place`."""
    place.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder) / "store")
        key = generate_keyfile(drawn("golden drill"))
        holder = KeyFileHolder(parse_keyfile(key.encode()))
        add_slot(storage, reader_keys(), holder, "key file", BIRTH)
        found(storage)
        repository = open_room(storage, "golden drill", keyset=reader_keys())
        document = Reports(repository).put(RUN, body())
        digest = Reports.digest(document)
        detail = detail_of(
            STEPS, at=BIRTH, kind="logical", restore_ms=61_200, total_ms=70_000,
            target_seconds=60, report=digest,
        )  # fmt: skip
        AuditLog(repository).append(
            Run("drill", RUN, BIRTH, BIRTH + timedelta(seconds=70), source="shop_db",
                outcome="failed", exit=9, code="damaged", detail=detail)
        )  # fmt: skip
        with tarfile.open(place / "store.tar.gz", "w:gz") as archive:
            archive.add(Path(folder) / "store", "store")
    (place / "secret").write_text(key, "utf-8")
    (place / "report.json").write_bytes(document)
    (place / "report.md").write_text(markdown(body(), digest), "utf-8")
    (place / "report.html").write_text(html(body(), digest), "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
