"""Damage: it costs what it hits and no more, check names exactly that, and index loss costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from blake3 import blake3

from rooms import (
    committed,
    each,
    fill,
    found,
    new_room,
    noise,
    open_room,
    reader_keys,
    restore,
    take,
    writer_keys,
)
from strongroom.errors import Damaged, KeyRefused, ObjectMissing, StrongroomError
from strongroom.format import content as contents
from strongroom.format import keyset as keysets
from strongroom.format import record
from strongroom.format import tree as trees
from strongroom.format.tree import Entry, Kind
from strongroom.progress import Silent
from strongroom.repository.check import Checker, Finding, Report
from strongroom.repository.ports import Taken
from strongroom.repository.repository import Repository
from strongroom.storage.faulty import flip
from strongroom.storage.memory import MemoryStorage

MIB = 1 << 20
FIRST = {b"one": noise("one", MIB), b"two": noise("two", MIB), b"three": noise("three", MIB)}
SECOND = {b"one": FIRST[b"one"], b"four": noise("four", MIB)}


def stored() -> MemoryStorage:
    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FIRST)
    take(room, "vault", SECOND)
    return storage


def run_check(storage: MemoryStorage, level: int = 3) -> Report:
    return Checker(open_room(storage, "check"), progress=Silent()).run(level)


def spoil_frame_of(storage: MemoryStorage, path: bytes) -> str:
    """Flip a bit in the frame that holds the first chunk of a file; return the pack's name."""
    room = open_room(storage, "spoil")
    index = room.catalogue.load_index("vault", condemned=frozenset())
    entry = room.open_snapshot(committed(room)[0]).find(path)
    assert entry is not None
    extents = list(room.open_snapshot(committed(room)[0]).extents(entry))
    (row,) = index.find(extents[0].id).tolist()
    place = index.place(int(index.frame[row]))
    name = f"packs/{place.pack.hex()[:2]}/{place.pack.hex()}"
    storage.objects[name] = flip(storage.objects[name], 8 * (place.offset + 40))
    return name


def outcome(storage: MemoryStorage, number: int) -> dict[bytes, bytes | None]:
    """Every file of a snapshot, None where it is refused: read one after the other, in one go."""
    room = open_room(storage, "read")
    result: dict[bytes, bytes | None] = {}
    for entry, pieces in each(room.open_snapshot(committed(room)[number])):
        try:
            result[entry.path] = fill(entry.size, pieces)
        except StrongroomError as fault:
            assert isinstance(fault, Damaged | ObjectMissing)
            result[entry.path] = None
    assert scattered(open_room(storage, "scatter"), number) == result
    return result


def scattered(room: Repository, number: int) -> dict[bytes, bytes | None]:
    """The same, from chunks that come in no order."""
    reader = room.open_snapshot(committed(room)[number])
    found: dict[bytes, bytearray] = {}
    failed: set[bytes] = set()
    spots: list[tuple[Entry, contents.Extent]] = []
    for entry in reader.entries():
        found[entry.path] = bytearray(entry.size)
        try:
            for extents in reader.parts(entry):
                spots += [(entry, extent) for extent in extents]
        except (Damaged, ObjectMissing, ValueError):
            failed.add(entry.path)

    def take(numbers: Sequence[int], chunks: Sequence[memoryview]) -> None:
        for number, chunk in zip(numbers, chunks, strict=True):
            entry, extent = spots[number]
            piece = chunk[extent.offset : extent.offset + extent.length]
            whole = entry.content[:1] == contents.WHOLE
            if len(piece) != extent.length or (whole and len(chunk) != entry.size):
                failed.add(entry.path)
                continue
            for repeat in range(extent.repeats):
                at = extent.start + repeat * extent.length
                found[entry.path][at : at + extent.length] = piece

    faults = reader.scatter([extent.id for _, extent in spots], take)()
    assert all(isinstance(fault, Damaged | ObjectMissing) for fault in faults.values())
    failed |= {spots[number][0].path for number in faults}
    return {path: None if path in failed else bytes(data) for path, data in found.items()}


def test_a_damaged_frame_costs_the_entries_that_need_it() -> None:
    storage = stored()
    name = spoil_frame_of(storage, b"two")
    result = outcome(storage, 0)
    assert result.pop(b"two") is None
    assert {path for path, data in result.items() if data is None} < {b"one", b"three"}
    assert any(data == FIRST[path] for path, data in result.items())
    assert outcome(storage, 1) == SECOND
    (finding,) = run_check(storage).findings
    first, _ = committed(open_room(storage, "list"))
    assert (finding.object, finding.snapshots) == (name, [first.id])
    truth = sorted(path for path, data in outcome(storage, 0).items() if data is None)
    assert finding.files[first.id] == truth
    assert finding.files_affected == len(truth)


def test_a_missing_pack_is_named_with_everything_that_it_hurts() -> None:
    storage = stored()
    name = max(
        (entry.name for entry in storage.list("packs/")), key=lambda n: len(storage.objects[n])
    )
    del storage.objects[name]
    for level in (0, 1, 2, 3):
        report = run_check(storage, level)
        (finding,) = [one for one in report.findings if one.object == name]
        hurt = [
            snapshot.id
            for number, snapshot in enumerate(committed(open_room(storage, "list")))
            if None in outcome(storage, number).values()
        ]
        assert finding.snapshots == hurt != []


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_an_index_segment_that_is_lost_costs_nothing(how: str) -> None:
    storage = stored()
    names = [entry.name for entry in storage.list("index/")]
    for name in names:
        if how == "gone":
            del storage.objects[name]
        else:
            whole = storage.objects[name]
            storage.objects[name] = flip(whole, 700) if how == "flipped" else whole[:-1]
    assert outcome(storage, 0) == FIRST
    assert outcome(storage, 1) == SECOND
    report = run_check(storage)
    assert report.findings != []
    assert report.damaged_snapshots == []
    if how != "gone":
        assert {finding.object for finding in report.findings} >= set(names)


def test_an_index_and_a_footer_that_are_lost_cost_what_stood_in_them() -> None:
    storage = stored()
    for entry in list(storage.list("index/")):
        del storage.objects[entry.name]
    room = open_room(storage, "list")
    pack = max(
        (entry.name for entry in storage.list("packs/")), key=lambda n: len(storage.objects[n])
    )
    storage.objects[pack] = flip(storage.objects[pack], 8 * (len(storage.objects[pack]) - 300))
    hurt = [
        snapshot.id
        for number, snapshot in enumerate(committed(room))
        if None in outcome(storage, number).values()
    ]
    assert run_check(storage).damaged_snapshots == sorted(hurt) != []


def test_a_second_copy_heals_the_first() -> None:
    """Two writers stored the same side by side; either copy may go, and nobody is hurt."""
    for victim in (0, 1):
        storage = MemoryStorage()
        room = new_room(storage)
        sessions = [open_room(storage, seed).begin("vault", progress=Silent()) for seed in "ab"]
        for number, session in enumerate(sessions):
            (chunk,) = session.lane().put_small([b"content" * 500])
            entry = Entry(b"f", Kind.FILE, size=3500, content=contents.whole(chunk))
            session.tree.add(entry)
            session.commit("vault", "files", Taken(1, 3500, {"n": number}), labels={})
        index = room.catalogue.load_index("vault", condemned=frozenset())
        rows = index.copies(chunk)
        assert len(rows) == 2
        place = index.place(int(index.frame[rows[victim]]))
        name = f"packs/{place.pack.hex()[:2]}/{place.pack.hex()}"
        storage.objects[name] = flip(storage.objects[name], 8 * (place.offset + 5))
        for number in (0, 1):
            assert outcome(storage, number) == {b"f": b"content" * 500}
        report = run_check(storage)
        assert [finding.object for finding in report.findings] == [name]
        assert report.damaged_snapshots == []


def test_a_frame_that_nobody_needs_any_more_hurts_nobody() -> None:
    """Chunks of a file that was read twice stay behind: refs name them, the tree does not."""
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    lane, other = session.lane(), session.lane()
    other.put_small([noise("left behind", 3000)])
    (chunk,) = lane.put_small([b"kept" * 100])
    session.tree.add(Entry(b"f", Kind.FILE, size=400, content=contents.whole(chunk)))
    session.commit("vault", "files", Taken(1, 400), labels={})
    index = room.catalogue.load_index("vault", condemned=frozenset())
    unused = [r for r in range(index.frames) if chunk not in {c for c, _, _ in index.chunks_in(r)}]
    place = next(
        index.place(row)
        for row in unused
        if any(length == 3000 for _, _, length in index.chunks_in(row))
    )
    name = f"packs/{place.pack.hex()[:2]}/{place.pack.hex()}"
    storage.objects[name] = flip(storage.objects[name], 8 * (place.offset + 5))
    assert outcome(storage, 0) == {b"f": b"kept" * 100}
    report = run_check(storage)
    assert [finding.object for finding in report.findings] == [name]
    assert report.damaged_snapshots == []


def test_a_chunk_that_is_not_what_its_id_says_costs_only_itself() -> None:
    """A hostile writer of the group stores a wrong content under an id that others will want."""
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    lane = session.lane()
    (good,) = lane.put_small([b"good" * 100])
    wanted = b"what the victim will back up" * 50
    (poisoned,) = (
        open_room(MemoryStorage(storage.objects), "id")
        .begin("else", progress=Silent())
        .lane()
        .put_small([wanted])
    )
    lane._data.add(poisoned, b"something else entirely" * 50)
    session.tree.add(Entry(b"good", Kind.FILE, size=400, content=contents.whole(good)))
    session.commit("vault", "files", Taken(1, 400), labels={})
    take(room, "vault", {b"bad": wanted, b"good": b"good" * 100})
    assert outcome(storage, 1) == {b"bad": None, b"good": b"good" * 100}
    assert outcome(storage, 0) == {b"good": b"good" * 100}
    (finding,) = run_check(storage).findings
    victim = committed(room)[1]
    assert finding.files == {victim.id: [b"bad"]}
    assert finding.snapshots == [victim.id]


# -- trees and facts ---------------------------------------------------------------------------


def test_damaged_tree_pages_are_named_and_the_rest_is_read() -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    files = {b"%05d" % number: b"" for number in range(3000)}
    snapshot = take(room, "vault", files).snapshot
    index = room.catalogue.load_index("vault", condemned=frozenset())
    frame = next(r for r in range(index.frames) if index.place(r).tree)
    place = index.place(frame)
    name = f"trees/{place.pack.hex()[:2]}/{place.pack.hex()}"
    storage.objects[name] = flip(storage.objects[name], 8 * (place.offset + 5))
    with pytest.raises(Damaged):
        restore(open_room(storage, "read"), snapshot)
    (finding,) = run_check(storage).findings
    assert (finding.object, finding.snapshots) == (name, [snapshot.id])
    assert finding.files_affected > 0


def test_damaged_facts_hurt_their_snapshot() -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    one = take(room, "vault", {b"f": b"x"}, facts={"n": noise(1, 999).hex()}).snapshot
    two = take(room, "vault", {b"f": b"x"}, facts={"n": 2}).snapshot
    index = room.catalogue.load_index("vault", condemned=frozenset())
    frame = next(
        r
        for r in range(index.frames)
        if contents.extents(one.facts, one.facts_size)[0].id
        in {chunk for chunk, _, _ in index.chunks_in(r)}
    )
    place = index.place(frame)
    name = f"packs/{place.pack.hex()[:2]}/{place.pack.hex()}"
    storage.objects[name] = flip(storage.objects[name], 8 * (place.offset + 5))
    assert restore(open_room(storage, "read"), two) == {b"f": b"x"}
    assert run_check(storage).damaged_snapshots == [one.id]


HOSTILE_CONTENTS: list[Callable[[bytes], bytes]] = [
    lambda chunk: b"\x07" + chunk,
    lambda chunk: contents.WHOLE + chunk[:-1],
    lambda chunk: contents.PAGED + chunk,  # a data chunk is no page of extents
    lambda chunk: contents.PAGED,
    lambda chunk: contents.inline([contents.Extent(0, 1000, 0, 1, chunk)]),  # beyond the chunk
    lambda chunk: contents.inline([contents.Extent(0, 4, 0, 1 << 31, chunk)]),
    lambda chunk: contents.inline([contents.Extent(0, 4, 0xFFFFFFFF, 1, chunk)]),
    lambda chunk: contents.whole(bytes(32)),
]


@pytest.mark.parametrize("number", range(len(HOSTILE_CONTENTS)))
def test_entries_that_a_hostile_writer_made_cost_only_themselves(number: int) -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    (chunk,) = session.lane().put_small([b"good"])
    hostile = HOSTILE_CONTENTS[number](chunk)
    for path, content, size in (
        (b"a", contents.whole(chunk), 4),
        (b"b", hostile, 500),
        (b"c", contents.whole(chunk), 4),
    ):
        session.tree.add(Entry(path, Kind.FILE, size=size, content=content))
    session.commit("vault", "files", Taken(3, 8), labels={})
    assert outcome(storage, 0) == {b"a": b"good", b"b": None, b"c": b"good"}


# -- who may what --------------------------------------------------------------------------------


def test_a_writer_can_back_up_and_cannot_read() -> None:
    storage = MemoryStorage()
    new_room(storage)
    writer = open_room(storage, "writer", keyset=writer_keys())
    snapshot = take(writer, "vault", FIRST).snapshot
    again = take(open_room(storage, "writer 2", keyset=writer_keys()), "vault", FIRST).snapshot
    assert again.new_size == 0  # it deduplicates against what it cannot read
    with pytest.raises(KeyRefused):
        writer.open_snapshot(snapshot)
    with pytest.raises(KeyRefused):
        writer.chunk_reader("vault").get(b"tree", snapshot.root.id)
    assert snapshot.writer == "host-a"
    assert restore(open_room(storage, "reader"), snapshot) == FIRST


def test_a_writer_checks_what_it_can_and_says_what_it_cannot() -> None:
    storage = MemoryStorage()
    new_room(storage)
    writer = open_room(storage, "writer", keyset=writer_keys())
    one = take(writer, "vault", FIRST).snapshot
    report = Checker(writer, progress=Silent()).run(3)
    assert report.findings == []
    assert sum("these keys only write" in note for note in report.notes) == 2
    name = spoil_frame_of(storage, b"two")
    report = Checker(open_room(storage, "w", keyset=writer_keys()), progress=Silent()).run(3)
    assert [(f.object, f.snapshots) for f in report.findings] == [(name, [one.id])]


def forged(change: Callable[[dict[str, object]], None]) -> tuple[MemoryStorage, str]:
    """A snapshot of which a holder of the catalogue key, but not of the signing key, changed a part."""

    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FIRST)
    (entry,) = storage.list("snapshots/")
    records = room.catalogue.records
    _, raw = records.open(storage.objects[entry.name], entry.name, record.SNAPSHOT)
    document = json.loads(raw)
    change(document)
    name = entry.name
    body = document["body"]
    if isinstance(body, dict) and body["source"] != "vault":
        name = name.replace("vault", body["source"])
        storage.objects[name] = b""
    sealed = records.seal(record.SNAPSHOT, name, record.canonical(document), nonce=b"n" * 12)
    storage.objects[name] = sealed
    return storage, name


def other_writer(document: dict[str, object]) -> None:
    """A valid signature, by a key that the admin of this repository never certified."""

    stranger = reader_keys(b"another repositor"[:16])
    document["signer"] = stranger.signing_public.hex()
    document["certificate"] = stranger.certificate.hex()
    body = document["body"]
    message = b"strongroom snapshot 1" + record.canonical(body)
    document["signature"] = keysets.sign(stranger, message).hex()


FORGERIES: dict[str, Callable[[dict[str, object]], None]] = {
    "labels": lambda d: d["body"].update(labels={"kept": "no"}),  # type: ignore[attr-defined]
    "root": lambda d: d["body"].update(root=["00" * 32, 0, 0]),  # type: ignore[attr-defined]
    "time": lambda d: d["body"].update(time="2027-01-01T00:00:00+00:00"),  # type: ignore[attr-defined]
    "source": lambda d: d["body"].update(source="other"),  # type: ignore[attr-defined]
    "writer": lambda d: d["body"].update(writer="host-b"),  # type: ignore[attr-defined]
    "epoch": lambda d: d["body"].update(epoch=2),  # type: ignore[attr-defined]
    "epoch as text": lambda d: d["body"].update(epoch="1"),  # type: ignore[attr-defined]
    "a field more": lambda d: d["body"].update(more=1),  # type: ignore[attr-defined]
    "signature": lambda d: d.update(signature="00" * 64),
    "no signature": lambda d: d.pop("signature"),
    "signer": lambda d: d.update(signer="00" * 32),
    "another repository's writer": other_writer,
    "no body": lambda d: d.update(body={"source": "vault"}),
    "body is a list": lambda d: d.update(body=[]),
}


@pytest.mark.parametrize("part", FORGERIES)
def test_forged_snapshots_are_refused_and_named(part: str) -> None:
    storage, name = forged(FORGERIES[part])
    room = open_room(storage, "read")
    with pytest.raises(Damaged):
        room.catalogue.open_snapshot(name)
    report = Checker(room, progress=Silent()).run(0)
    assert name in {finding.object for finding in report.findings}


def test_a_snapshot_under_another_name_is_refused() -> None:
    storage = stored()
    one, two = [entry.name for entry in storage.list("snapshots/")]
    storage.objects[one], storage.objects[two] = storage.objects[two], storage.objects[one]
    report = run_check(storage, 0)
    assert {finding.object for finding in report.findings} == {one, two}
    assert committed(open_room(storage, "list")) == []


def test_a_snapshot_of_another_repository_is_refused() -> None:
    storage = stored()
    (name, _) = [entry.name for entry in storage.list("snapshots/")]
    stranger = MemoryStorage()
    other = reader_keys(b"another repositor"[:16])
    found(stranger, other)
    stranger.objects[name] = storage.objects[name]
    with pytest.raises(Damaged):
        open_room(stranger, "s", keyset=other).catalogue.open_snapshot(name)


# -- odds ------------------------------------------------------------------------------------------


def test_check_goes_on_when_nearly_everything_is_gone() -> None:
    for keep in ("snapshots/", "refs/", "index/", "packs/", "trees/", "sessions/"):
        storage = stored()
        for name in list(storage.objects):
            if not name.startswith(keep):
                del storage.objects[name]
        room = open_room_without_identity(storage)
        report = Checker(room, progress=Silent()).run(3)
        assert any(isinstance(finding, Finding) for finding in report.findings)


def open_room_without_identity(storage: MemoryStorage) -> Repository:
    whole = stored()
    room = open_room(whole, "check")
    room.storage = storage
    room.catalogue.storage = storage
    return room


def test_foreign_objects_are_noted_not_judged() -> None:
    storage = stored()
    storage.objects["notes.txt"] = b"mine"
    storage.objects["packs/README"] = b"mine too"
    report = run_check(storage)
    assert report.damaged_snapshots == []
    assert any("notes.txt" in note for note in report.notes)
    assert [finding.object for finding in report.findings] == ["packs/README"]


def test_a_pack_that_no_index_names_must_have_a_footer_that_opens() -> None:
    storage = stored()
    for data in (b"", b"short", b"long enough for a trailer, and yet no pack" * 3):
        name = blake3(data).hexdigest()
        storage.objects[f"packs/{name[:2]}/{name}"] = data
    report = run_check(storage)
    assert len(report.findings) == 3
    assert report.damaged_snapshots == []


def test_pages_are_one_tree_whatever_the_writer_did() -> None:
    """The decoder's errors come up as Damaged, not as ValueError, wherever a page is read."""
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    lane = session.lane()
    (page,) = lane.put_chunks(b"tree", [b"\xff" * 40])
    (index,) = lane.put_chunks(b"tree", [trees.encode_index([(page, 1, b"")])])
    session.tree._rows = [(index, 1, b"")]
    snapshot = session.commit("vault", "files", Taken(0, 0), labels={})
    reader = room.open_snapshot(snapshot)
    for read in (lambda: list(reader.entries()), lambda: reader.find(b"x")):
        with pytest.raises(Damaged):
            read()
    assert run_check(storage).damaged_snapshots == [snapshot.id]
