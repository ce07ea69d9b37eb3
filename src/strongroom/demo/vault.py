"""The demo's Memory Vault: the seed's five folders, filled with small JSON and some features."""

from __future__ import annotations

import json
import os
import random

FOLDERS = ("ml_features", "audits", "campaign_history", "clips_metadata", "orchestrator_runs")


def fill(root: str, *, files: int) -> None:
    """Make the vault: deterministic contents, some names that are not UTF-8, a few large files."""
    chance = random.Random(4711)  # noqa: S311  repeatable, not secret
    for number in range(files):
        folder = os.path.join(root, FOLDERS[number % 5], f"{number // 1000:03d}")
        if number % 1000 < len(FOLDERS):
            os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{number:06d}.json"), "w", encoding="utf-8") as file:
            json.dump(_document(number, chance), file)
    for number in range(4):
        with open(os.path.join(root, "ml_features", f"embedding-{number}.bin"), "wb") as binary:
            binary.write(chance.randbytes(4 * 1024 * 1024))
    odd = os.path.join(os.fsencode(root), b"audits", b"caf\xe9 \xff.log")
    with open(odd, "wb") as binary:
        binary.write(b"a name that is not UTF-8\n")
    os.symlink("../audits/000", os.path.join(root, "campaign_history", "latest"))


def change(root: str, *, files: int) -> None:
    """A day's work: one file in a hundred edited, some new, some gone."""
    chance = random.Random(815)  # noqa: S311  repeatable, not secret
    for number in range(0, files, 100):
        path = os.path.join(
            root, FOLDERS[number % 5], f"{number // 1000:03d}", f"{number:06d}.json"
        )
        if number % 1000 == 0:
            os.unlink(path)
            continue
        with open(path, "w", encoding="utf-8") as file:
            json.dump({**_document(number, chance), "edited": True}, file)
    for number in range(files, files + files // 100):
        path = os.path.join(root, "orchestrator_runs", f"{number:06d}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(_document(number, chance), file)


def _document(number: int, chance: random.Random) -> dict[str, object]:
    return {
        "id": number,
        "kind": FOLDERS[number % 5],
        "vector": [round(chance.random(), 5) for _ in range(chance.randint(10, 120))],
        "tags": [f"t{chance.randrange(97)}" for _ in range(6)],
        "note": f"object {number} of the collection {number % 331}",
    }
