"""keep, expire, undelete, prune: what a person sees of them."""

from __future__ import annotations

import os

import pytest

from acceptance.conftest import CONFIG, Desk, tree_of

TWO = CONFIG.replace(', keep = "30d"', "") + "retention = {{ last = 2 }}\n"


@pytest.fixture
def four(filled: Desk) -> tuple[Desk, list[str]]:
    """Four backups, each with a file that no other has; two are to stay."""
    desk = filled
    desk.configure(TWO)
    ids = []
    for number in range(4):
        (desk.vault / "alone.bin").write_bytes(os.urandom(2_000_000))
        body = desk.run("backup", "vault", "--label", f"n={number}", "--json").result
        ids.append(body["backups"][0]["snapshot"]["id"])
    return desk, ids


def ids_of(desk: Desk, *words: str) -> list[str]:
    return [one["id"] for one in desk.run("list", *words, "--json").document["snapshots"]]


def packs(desk: Desk) -> int:
    return sum(path.stat().st_size for path in (desk.repository / "packs").rglob("*"))


def test_what_goes_goes_in_two_steps_and_comes_back_after_the_first(
    four: tuple[Desk, list[str]],
) -> None:
    desk, ids = four
    before = packs(desk)
    planned = desk.run("expire", "--dry-run").text
    assert planned.startswith("vault: 2 stay, 2 would go\n")
    assert planned.count("no rule keeps it") == 2 and "last 1 of 2" in planned
    assert ids_of(desk) == ids
    desk.run("keep", "vault", ids[0][:8], "--why", "the auditor asked")
    (held, *_) = desk.run("list", "--json").document["snapshots"]
    assert (held["held"], held["held_until"]) == (True, None)
    said = desk.run("expire", "vault").text
    assert "held for good: the auditor asked" in said
    assert ids_of(desk) == [ids[0], *ids[2:]]
    assert ids_of(desk, "--expired") == [ids[1]]
    assert desk.run("restore", "vault", "--backup", ids[1], "--to", "x", status=5)
    # Nothing is lost yet: it comes back, and is as it was.
    desk.run("undelete", "vault", ids[1][:8])
    assert ids_of(desk) == ids
    desk.run("restore", "vault", "--backup", ids[1], "--to", "back")
    desk.run("keep", "vault", ids[0], "--release")
    desk.run("expire")
    assert ids_of(desk) == ids[2:]
    desk.run("keep", "vault", ids[1][:8])  # a hold brings back, too
    assert ids_of(desk) == ids[1:]
    desk.run("keep", "vault", ids[1], "--release")
    desk.run("expire")
    assert ids_of(desk) == ids[2:]
    assert packs(desk) == before
    planned = desk.run("prune", "--dry-run", "--json").result
    assert len(planned["swept"]) == 2 and planned["freed"] > 3_000_000
    assert packs(desk) == before
    done = desk.run("prune", "--json").result
    assert (done["freed"], done["kept"]) == (planned["freed"], [])
    assert packs(desk) < before - 3_000_000
    assert desk.run("undelete", "vault", ids[1], status=5).code == "not-found"
    assert "expired" not in desk.run("keep", "vault", "zzzz", status=5).error_lines[0]
    assert "no damage found" in desk.run("check", "--read-data").text
    desk.run("restore", "vault", "--to", "now")
    assert tree_of(desk.root / "now") == tree_of(desk.vault)
    again = desk.run("prune", "--live", "1", "--json").result
    assert (again["packs"]["deleted"], again["waste"]) == (0, 0)
    (last,) = desk.run("backup", "vault", "--json").result["backups"]
    assert last["snapshot"]["new_size"] < 1000  # what it says of itself


def test_a_vault_that_is_suddenly_empty_deletes_nothing(four: tuple[Desk, list[str]]) -> None:
    desk, ids = four
    desk.run("keep", "vault", ids[1])
    desk.run("expire")
    assert ids_of(desk, "--expired") == [ids[0]]
    (desk.vault / "alone.bin").unlink()
    desk.run("backup", "vault")
    # Not even what was decided before: it may be all that is left.
    pruned = desk.run("prune", "--json")
    assert (pruned.result["swept"], pruned.result["spared"]) == ([], ["vault"])
    assert "where 2.2 MiB were usual" in pruned.stderr
    desk.run("undelete", "vault", ids[0])
    desk.run("keep", "vault", ids[1], "--release")
    done = desk.run("expire", status=4)
    assert "where 2.2 MiB were usual" in done.stderr
    assert "nothing is deleted now; otherwise it would go" in done.text
    assert ids_of(desk)[:4] == ids and ids_of(desk, "--expired") == []


def test_a_prune_needs_no_key_that_opens_data(four: tuple[Desk, list[str]]) -> None:
    desk, ids = four
    desk.run("key", "add", "pruner", "--role", "writer", "--new-key-file", "writer.key")
    desk.run("expire")
    environ = {"STRONGROOM_PASSPHRASE": ""}
    lines = [line for line in TWO.splitlines() if not line.startswith("passphrase")]
    desk.configure("\n".join(lines))
    done = desk.run("--key-file", "writer.key", "prune", "--json", env=environ).result
    assert len(done["swept"]) == 2
    desk.configure(TWO)
    assert "no damage found" in desk.run("check", "--read-data").text
    assert ids_of(desk) == ids[2:]


def test_without_a_rule_everything_stays(filled: Desk) -> None:
    filled.configure(CONFIG.replace(', keep = "30d"', ""))
    filled.run("backup", "vault")
    filled.run("backup", "vault")
    assert "no retention is configured: everything stays" in filled.run("expire").text
    assert "2 stay, 0 go" in filled.run("expire").text


@pytest.mark.parametrize(
    ("until", "says"),
    [
        ("yesterday", "neither a date nor a span of time"),
        ("2020-01-01", "is over"),
        ("2099-01-01T10:00", "does not say in which zone"),
        ("10m", "neither"),
    ],
)
def test_a_hold_needs_a_moment_to_come(filled: Desk, until: str, says: str) -> None:
    filled.run("backup", "vault")
    done = filled.run("keep", "vault", "latest", "--until", until, status=2)
    assert says in done.stderr


def test_verified_is_what_a_check_read_whole(filled: Desk) -> None:
    """`minimum` counts what the audit log proves, not what is there."""
    desk = filled
    desk.configure(TWO.replace("last = 2", "last = 1, minimum = 2"))
    made = []
    for number in range(4):
        (desk.vault / "alone.bin").write_bytes(os.urandom(100_000))
        body = desk.run("backup", "vault", "--json").result
        made.append(body["backups"][0]["snapshot"]["id"])
        if number == 0:
            desk.run("check")  # the structure: that proves no backup
        if number == 1:
            desk.run("check", "--read-data", "--budget", "0B")
            checked = desk.run("check", "--read-data", "--json").result
            assert checked["coverage"] == "whole" and checked["whole"] == made[1::-1]
    planned = desk.run("expire", "--dry-run", "--json").document["sources"][0]["backups"]
    assert [one["verified"] for one in planned] == [True, True, False, False]
    assert [one["stays"] for one in planned] == [True, True, False, True]
    assert planned[0]["reasons"] == ["never fewer than 2 verified"]
    assert "never fewer than 2 verified; verified" in desk.run("expire", "--dry-run").text
    # A journal that was lost knows the same.
    for path in [*desk.home.rglob("journal.sqlite")]:
        path.unlink()
    desk.run("expire")
    assert ids_of(desk) == [made[0], made[1], made[3]]
    # What is proved newly takes the place.
    desk.run("check", "--read-data")
    desk.run("expire")
    assert ids_of(desk) == [made[1], made[3]]
    # What is damaged is verified no more, and the next one that is takes its place.
    packed = [path for path in (desk.repository / "packs").rglob("*") if path.is_file()]
    pack = max(packed, key=lambda path: path.stat().st_mtime_ns)
    pack.chmod(0o600)
    pack.write_bytes(bytes(len(pack.read_bytes())))
    hurt = desk.run("check", "--read-data", "--json", status=9).result
    planned = desk.run("expire", "--dry-run", "--json").document["sources"][0]["backups"]
    known = {one["id"]: (one["verified"], one["damaged"]) for one in planned}
    assert hurt["damaged_snapshots"] == [made[3]]
    assert known == {made[1]: (True, False), made[3]: (False, True)}
