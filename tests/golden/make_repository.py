"""Write a golden repository: one of everything that format 1 knows, in some 200 KB.

    python tests/golden/make_repository.py tests/golden/repositories/NAME

NAME must not be there: golden repositories are never written anew, because programs of later
years must read what this one wrote. Another is made when the format learns something.

    store/          the repository
    secrets.json    passphrase, key file and recovery code that open it
    expected.json   for each snapshot, oldest first: what every path must be
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rooms import (
    BIRTH,
    QUIET,
    Clock,
    DictSource,
    Files,
    Sparse,
    drawn,
    flat,
    found,
    noise,
    open_room,
    reader_keys,
    writer_keys,
)
from strongroom.format.tree import Entry, Kind
from strongroom.keys.base import KeyHolder
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.keys.recovery_code import (
    RecoveryCodeHolder,
    generate_recovery_code,
    parse_recovery_code,
)
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.repository.keyring import add_slot
from strongroom.storage.local import LocalStorage

FACTS = {"mode": 0o640, "uid": 7, "gid": 8, "mtime_ns": 1_234_567_890_123}  # of DictSource


def first() -> Files:
    """A vault: small files on several tree pages, a list of extents in pages, all kinds."""
    files: dict[bytes, Any] = {
        b"many/%04d.json" % number: b'{"n": %d}\n' % number * (number % 9) for number in range(400)
    }
    lines = b"".join(b"%08d a line like any other\n" % number for number in range(70_000))
    files |= {
        b"": Entry(b"", Kind.DIRECTORY, mode=0o750, mtime_ns=1),
        b"a": Entry(b"", Kind.DIRECTORY, mode=0o755, mtime_ns=-1_000_000_001),
        b"a-b": b"sorts between a and a/x",
        b"a/x": b"x",
        b"large.txt": lines,
        b"noise": noise("golden", 30_000),
        b"sparse": Sparse(5_000_000, ((1_000_000, b"y" * 3000), (4_999_999, b"z"))),
        b"all-hole": Sparse(70_000, ()),
        b"repeated": b"same " * 120_000,
        b"\xff\x01 raw\n": b"a name that is no text",
        b"hard": Entry(b"", Kind.HARDLINK, target=b"a/x"),
        b"link": Entry(b"", Kind.SYMLINK, mode=0o777, mtime_ns=2, target=b"../nowhere/\xff"),
        b"pipe": Entry(b"", Kind.FIFO, mode=0o600, mtime_ns=3),
        b"folder": Entry(b"", Kind.DIRECTORY, mode=0o1777, xattrs=((b"user.n", b"\0v"),)),
    }
    return files


def second(before: Files) -> Files:
    """The next day: something changed, went and came."""
    files = {path: content for path, content in before.items() if path != b"a-b"}
    files[b"many/0300.json"] = b"changed"
    files[b"new"] = b"came since"
    return files


def dump() -> Files:
    """The streams of a database."""
    return {b"globals.sql": b"create role reader;\n", b"table-1": noise("dump", 9_000), b"t": b""}


def expectation(files: Files) -> dict[str, Any]:
    """What each path must be, from what was put in, and from nothing that was read."""
    return {path.hex(): _facts(path, content) for path, content in sorted(files.items())}


def _facts(path: bytes, content: Any) -> dict[str, Any]:
    if isinstance(content, Entry):
        entry = replace(content, path=path)
    else:
        entry = Entry(path, Kind.FILE, size=len(flat(content)), **FACTS)  # type: ignore[arg-type]
    return {
        "kind": entry.kind.name if isinstance(content, Entry) else "CONTENT",
        "mode": entry.mode,
        "owner": [entry.uid, entry.gid],
        "mtime_ns": entry.mtime_ns,
        "target": entry.target.hex(),
        "xattrs": [[name.decode(), value.hex()] for name, value in entry.xattrs],
        "size": entry.size,
        "sha256": hashlib.sha256(flat(content)).hexdigest(),
    }


def make(place: Path) -> None:
    """Write the golden repository `place`."""
    place.mkdir(parents=True)
    storage, clock, random = LocalStorage(place / "store"), Clock(), drawn("golden repository 1")
    keyfile, code = generate_keyfile(random), generate_recovery_code(random)
    secrets = {"passphrase": "golden pässphrase", "key": keyfile, "code": code}
    for label, holder in holders(secrets).items():
        add_slot(storage, reader_keys(), holder, label, BIRTH)
    add_slot(storage, writer_keys(), PassphraseHolder(b"a writer's", cost=_COST), "host-a", BIRTH)
    found(storage)
    vault = first()
    taken = (
        ("vault", "files", vault),
        ("vault", "files", second(vault)),
        ("db", "postgres", dump()),
    )
    expected = []
    for number, (name, kind, files) in enumerate(taken):
        # The second day is a writer's, who cannot read; the packs are small, so that there are some.
        keys = writer_keys() if number == 1 else reader_keys()
        settings = replace(QUIET, pack_size=64 * 1024, index_rows=400)
        repository = open_room(storage, number, keyset=keys, clock=clock, settings=settings)
        report = back_up(repository, DictSource(name, files, kind=kind), progress=Silent())
        expected.append(
            {
                "id": report.snapshot.id,
                "source": name,
                "kind": kind,
                "writer": report.snapshot.writer,
                "entries": expectation(files),
            }
        )
    _write(place / "secrets.json", secrets)
    _write(place / "expected.json", expected)


_COST = Cost(passes=1, memory=64, lanes=2)


def holders(secrets: dict[str, str]) -> dict[str, KeyHolder]:
    """The ways in, by the label of their slots."""
    return {
        "passphrase": PassphraseHolder(secrets["passphrase"].encode(), cost=_COST),
        "key file": KeyFileHolder(parse_keyfile(secrets["key"].encode())),
        "recovery kit": RecoveryCodeHolder(parse_recovery_code(secrets["code"])),
    }


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
