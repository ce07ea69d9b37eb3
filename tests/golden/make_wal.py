"""Write the golden WAL: a small repository that holds one of each object below `wal/`.

    python tests/golden/make_wal.py tests/golden/wal/NAME

As with golden repositories, none is ever written anew.

    store/          the repository
    secret          the key file that opens it
    expected.json   for each file its SHA-256, and what a listing must tell
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rooms import BIRTH, drawn, found, noise, open_room, reader_keys, writer_keys
from strongroom.errors import WalConflict
from strongroom.format.wal import RestorePoint, SegmentFacts
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.repository.keyring import add_slot
from strongroom.repository.wal import WalStore
from strongroom.storage.local import LocalStorage

SYSTEM = 7_300_000_000_000_000_001
FACTS = SegmentFacts(
    10,
    0x1000000,
    16 << 20,
    first=0x1000028,
    last=0x1FFFF00,
    first_commit=BIRTH,
    last_commit=BIRTH,
    commits=7,
    aborts=1,
    largest=(741, 4711),
    restore_points=(RestorePoint("before the großes Update", 0x1000400, BIRTH),),
    switched=True,
)
FILES: dict[str, tuple[bytes, SegmentFacts | None]] = {
    "0000000A0000000000000001": (noise("wal 1", 2000) + bytes(2_200_000), FACTS),
    "0000000A0000000000000002": (b"", None),
    "0000000A0000000000000003.partial": (noise("wal 3", 100), None),
    "0000000A0000000000000001.00000028.backup": (b"START WAL LOCATION: 0/1000028\n", None),
    "0000000A.history": (b"1\t0/1000000\tbefore 2000-01-01 00:00:00+00\n", None),
}


def make(place: Path) -> None:
    """Write the golden WAL `place`."""
    place.mkdir(parents=True)
    storage = LocalStorage(place / "store")
    key = generate_keyfile(drawn("golden wal"))
    add_slot(storage, reader_keys(), KeyFileHolder(parse_keyfile(key.encode())), "key file", BIRTH)
    found(storage)
    store = WalStore(open_room(storage, "golden wal", keyset=writer_keys()))
    for name, (data, facts) in FILES.items():
        store.put(SYSTEM, name, memoryview(data), facts=facts)
    store.summarise(SYSTEM, 10, least=1)
    store.put_gap(SYSTEM, 10, 0x4000000, 0x5000000, "the disk was full")
    store.bind("db", SYSTEM)
    with contextlib.suppress(WalConflict):
        store.put(SYSTEM, "0000000A0000000000000002", memoryview(b"other"))
    expected: dict[str, Any] = {
        name: {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "facts": None if facts is None else facts.as_json(),
        }
        for name, (data, facts) in FILES.items()
    }
    (place / "secret").write_text(key, "utf-8")
    (place / "expected.json").write_text(json.dumps(expected) + "\n", "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
