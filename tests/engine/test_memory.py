"""How much memory the large cases take, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20

# Not ru_maxrss: that begins at the size of the process that started this one.
PEAK = """
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""

INDEX = """
import sys
import numpy as np
from blake3 import blake3
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow, decode, encode
from strongroom.repository.index import ABSENT, Index

CHUNKS, ROWS, PER_FRAME = 10_000_000, 65_536, 16

def segments():
    for number in range(-(-CHUNKS // ROWS)):
        count = min(ROWS, CHUNKS - number * ROWS)
        frames = np.zeros(count // PER_FRAME, FRAME_ROW)
        frames["sequence"] = np.arange(len(frames)) + number * (ROWS // PER_FRAME)
        frames["offset"], frames["length"] = np.arange(len(frames)) * 1000, 1000
        frames["chunks"] = PER_FRAME
        ids = blake3(b"ids %d" % number).digest(32 * count)
        raw = encode(Segment(
            [SessionRow(b"s" * 16, 1, b"k" * 1168)], [(False, blake3(ids).digest())], frames, ids,
            np.full(count, 65_536, np.uint32)))
        segment = decode(raw)
        segment.name = str(number)
        yield segment

index = Index(segments())
assert len(index) == CHUNKS
wanted = blake3(b"ids 77").digest(32 * 1000) + bytes(32)
rows = index.find(wanted)
assert (rows[:-1] != ABSENT).all() and rows[-1] == ABSENT
print(peak())
"""

TREE = """
import sys
sys.path.insert(0, sys.argv[2])
import rooms
from strongroom.format.content import whole
from strongroom.format.tree import Entry, Kind
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.repository.ports import Taken
from strongroom.storage.local import LocalStorage

FILES, BATCH = 1_000_000, 1000

class Million:
    name, kind = "vault", "files"
    def back_up(self, session, *, progress):
        lane = session.lane()
        for batch in range(FILES // BATCH):
            contents = [b"file %d of a million, with a line of text" % (batch * BATCH + n)
                        for n in range(BATCH)]
            for n, chunk in enumerate(lane.put_small(contents)):
                path = b"d%03d/e%03d/file-%07d.json" % (batch // 100, batch, batch * BATCH + n)
                session.tree.add(Entry(path, Kind.FILE, size=40, content=whole(chunk)))
        return Taken(FILES, 40 * FILES)
    def settled(self): pass

room = rooms.new_room(LocalStorage(sys.argv[1]), settings=rooms.Settings())
snapshot = back_up(room, Million(), progress=Silent()).snapshot
written = peak()
assert sum(1 for _ in room.open_snapshot(snapshot).entries()) == FILES
print(written, peak())
"""


def peaks(program: str, *words: str) -> list[int]:
    """Run `program`; return the peaks of memory that it prints, in bytes."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK + program, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    return [int(word) * 1024 for word in run.stdout.split()]


@pytest.mark.slow
def test_ten_million_chunks_take_less_than_a_gigabyte() -> None:
    (peak,) = peaks(INDEX)
    print(f"10,000,000 chunks: {peak / MIB:.0f} MiB")
    assert peak <= 1000 * 1000 * 1000


@pytest.mark.slow
def test_a_million_small_files_take_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    written, read = peaks(TREE, str(tmp_path / "store"), str(Path(__file__).parent.parent))
    print(f"1,000,000 files: {written / MIB:.0f} MiB to write, {read / MIB:.0f} MiB after reading")
    assert read <= 500 * 1000 * 1000
