"""Write the golden audit log: a small repository whose log has a tile and a few leaves behind it.

    python tests/golden/make_audit.py tests/golden/audit/NAME

As with golden repositories, none is ever written anew.

    store.tar.gz    the repository
    secret          the key file that opens it
    pin.txt         a checkpoint that was kept elsewhere
    expected.json   size, root, and some of the runs
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rooms import BIRTH, drawn, found, open_room, reader_keys, writer_keys
from strongroom.format.run import OUTCOMES, TYPES, Run
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.repository.audit import AuditLog
from strongroom.repository.keyring import add_slot
from strongroom.storage.local import LocalStorage

COUNT = 259


def run(number: int) -> Run:
    moment = BIRTH + timedelta(hours=number)
    return Run(
        TYPES[number % len(TYPES)],
        f"{number:016x}",
        moment,
        moment + timedelta(minutes=7),
        source="vault",
        host="db1",
        user="root (ada)",
        trigger="schedule",
        outcome=OUTCOMES[number % len(OUTCOMES)],
        exit=number % 11,
        code="damaged" if number % 11 == 9 else "",
        what=f"run {number} of the große Übung",
        snapshot="0123456789abcdef",
        size=number * 1000,
        new_size=number,
        stored=number // 2,
        files=3,
        problems=number % 2,
        detail={"list": [1, "zwei", None], "object": {"true": True}},
    )


def make(place: Path) -> None:
    """Write the golden log `place`."""
    place.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder) / "store")
        key = generate_keyfile(drawn("golden audit"))
        holder = KeyFileHolder(parse_keyfile(key.encode()))
        add_slot(storage, reader_keys(), holder, "key file", BIRTH)
        found(storage)
        logs = [
            AuditLog(open_room(storage, ("golden audit", role), keyset=keyset))
            for role, keyset in enumerate((reader_keys(), writer_keys()))
        ]
        for number in range(COUNT - 1):
            logs[number % 2].append(run(number))
        pin = logs[0].checkpoint()
        logs[1].append(run(COUNT - 1))
        root = logs[1].verify().roots[COUNT]
        with tarfile.open(place / "store.tar.gz", "w:gz") as archive:
            archive.add(Path(folder) / "store", "store")
    (place / "secret").write_text(key, "utf-8")
    (place / "pin.txt").write_text(pin.note, "utf-8")
    picked = {str(number): run(number).as_json() for number in (0, 7, 255, COUNT - 1)}
    expected = {"size": COUNT, "root": root.hex(), "runs": picked}
    (place / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
