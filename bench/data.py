"""The data of the benchmark: made once, deterministic but for what must not compress."""

from __future__ import annotations

import json
import os
import random
import struct

FOLDERS = ("ml_features", "audits", "campaign_history", "clips_metadata", "orchestrator_runs")
MIB = 1024 * 1024


def vault(root: str, files: int = 100_000) -> str:
    """JSON files of 1 to 8 KB in the seed's five folders, and 8 × 16 MiB that do not compress."""
    if os.path.exists(root + ".made"):
        return root
    chance = random.Random(7)
    for number in range(files):
        kind = FOLDERS[number % 5]
        folder = f"{root}/{kind}/{number // 1000:03d}"
        if number % 1000 < 5:
            os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{number:07d}.json", "w") as file:
            file.write(_document(kind, number, chance.randint(1100, 7600), chance))
    for number in range(8):
        with open(f"{root}/random-{number}.bin", "wb") as binary:
            binary.write(os.urandom(16 * MIB))
    open(root + ".made", "w").close()
    return root


def _document(kind: str, number: int, size: int, chance: random.Random) -> str:
    """A document of about `size` bytes, as the platform's workers write them."""
    document: dict[str, object] = {
        "id": f"{kind}-{number:07d}",
        "schema_version": 3,
        "created_at": f"2026-{1 + number % 12:02d}-{1 + number % 28:02d}T{number % 24:02d}:17:09Z",
        "campaign_id": chance.randrange(2000),
    }
    if kind == "ml_features":
        document["model"] = "clip-vit-b32"
        document["vector"] = [round(chance.gauss(0, 1), 4) for _ in range(size // 9)]
        return json.dumps(document)
    events = document["events"] = []
    while size > 0:
        event = {
            "at": f"2026-11-{chance.randint(1, 28):02d}T{chance.randint(0, 23):02d}:00:00Z",
            "actor": f"user-{chance.randrange(400)}@stakazo.example",
            "action": chance.choice(("publish", "rank", "render", "retry", "review", "schedule")),
            "target": f"https://cdn.stakazo.example/clips/{chance.randrange(10**6)}/master.m3u8",
            "score": round(chance.random(), 3),
            "ok": chance.random() < 0.97,
        }
        events.append(event)
        size -= 210
    return json.dumps(document)


def large(root: str, mib: int) -> str:
    """Large files: half database-like pages, half random bytes."""
    if os.path.exists(root + ".made"):
        return root
    os.makedirs(root, exist_ok=True)
    pages = [_page(number) for number in range(4096)]
    chance = random.Random(5)
    for part in range(4):
        with open(f"{root}/heap-{part}.dat", "wb") as file:
            for number in range(mib * 128 // 8):
                lsn = struct.pack("<Q", part << 40 | number)
                file.write(lsn + pages[chance.randrange(4096)][8:])
        with open(f"{root}/random-{part}.bin", "wb") as file:
            for _ in range(mib // 8):
                file.write(os.urandom(MIB))
    open(root + ".made", "w").close()
    return root


def _page(number: int) -> bytes:
    """Something like a heap page: tuples of words and numbers from its end, zeros before them."""
    chance = random.Random(number)
    words = b"campaign clip active pending 2026-11- https://cdn.example/ user score null".split()
    page, at, item = bytearray(8192), 8192, 0
    while at > 600:
        head = struct.pack("<IIHHI", 1000 + number % 50, 0, item, number % 7, number * 37 + item)
        row = head + b" ".join(chance.choices(words, k=6)) + b"%08d" % chance.randrange(10**8)
        row += chance.randbytes(10)
        at -= len(row) + -len(row) % 8
        page[at : at + len(row)] = row
        item += 1
    return bytes(page)


def many(root: str, files: int) -> str:
    """A great many tiny files."""
    if os.path.exists(root + ".made"):
        return root
    for number in range(files):
        folder = f"{root}/{number // 5000:03d}"
        if number % 5000 == 0:
            os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{number:08d}", "wb") as file:
            file.write(b"%d\n" % (number * 7919) * (number % 9 + 1))
    open(root + ".made", "w").close()
    return root
