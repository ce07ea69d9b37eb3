"""kill -9 of a real process at random moments, then a new process: nothing wrong, nothing twice.

The child is this file, run as a program: it backs up to a local directory and says when it is
done. Killed, it leaves what the disk has; the next one takes that up.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from day import stored_twice

from rooms import (
    DictSource,
    as_read,
    committed,
    found,
    noise,
    open_room,
    read,
    restore,
    seams,
)
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.seams import Settings
from strongroom.storage.local import LocalStorage
from strongroom.storage.metered import MeteredStorage

MIB = 1 << 20
SETTINGS = Settings(sealers=2, putters=2, pack_size=MIB)
FILES = {
    **{b"small/%04d" % number: noise(number, 1500) for number in range(2000)},
    **{b"large/%d" % number: noise(number, 3 * MIB) for number in range(8)},
}
TOTAL = sum(map(len, FILES.values()))


def back_up_here(path: str) -> int:
    """Back up to the directory `path`; return the bytes that were put."""
    metered = MeteredStorage(LocalStorage(path))
    room = open_room(metered, os.urandom(8), settings=SETTINGS)
    room.seams = seams(os.urandom(8))
    back_up(room, DictSource("vault", FILES), progress=Silent())
    return metered.totals()["put"].size


def child(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True
    )


def durable(storage: LocalStorage) -> int:
    return sum(entry.size for entry in storage.list("packs/"))


def kill_and_resume(path: Path, seed: int) -> bool:
    """One life and death; return whether the child was killed before it was done."""
    storage = LocalStorage(path)
    found(storage)
    drawn, killed = random.Random(seed), False
    for _ in range(3):
        process = child(path)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(drawn.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        killed |= process.returncode == -signal.SIGKILL
        assert_sound(storage)
    before = durable(storage)
    uploaded = back_up_here(str(path))
    # What was durable is not sent again: the rest, the trees and the records remain.
    assert uploaded < TOTAL - before + 0.03 * TOTAL + MIB
    assert_sound(storage)
    assert committed(open_room(storage, "list")) != []
    assert back_up_here(str(path)) < 64 * 1024
    return killed


def assert_sound(storage: LocalStorage) -> None:
    """Whatever is there is whole, and no chunk rests in two frames."""
    room = open_room(storage, "sound")
    assert Checker(room, progress=Silent()).run(3).findings == []
    assert stored_twice(room) == {}
    for snapshot in committed(room):
        assert read(room.open_snapshot(snapshot)) == as_read(FILES)


def test_a_sample_of_kills(tmp_path: Path) -> None:
    killed = sum(kill_and_resume(tmp_path / str(seed), seed) for seed in range(2))
    assert killed > 0


@pytest.mark.sweep
def test_many_kills(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    killed = sum(kill_and_resume(tmp_path / str(seed), seed) for seed in range(100, 140))
    record_property("faults", ("kill -9 of a process that backs up", 3 * 40))
    assert killed > 10


# -- two writers at once -----------------------------------------------------------------------


def contents_of(writer: int, run: int) -> dict[bytes, bytes]:
    """What two writers have in common, what each has of its own, and what changes."""
    return {
        **{b"both/%02d" % number: noise(("both", number), 9000) for number in range(30)},
        b"own/%d" % writer: noise(("own", writer), 50_000),
        b"run": noise(("run", writer, run), 20_000),
    }


@pytest.mark.parametrize("same_source", [True, False])
def test_two_writers_at_once(tmp_path: Path, same_source: bool) -> None:
    storage = LocalStorage(tmp_path / "store")
    found(storage)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        source = "vault" if same_source else f"vault-{writer}"
        try:
            for run in range(6):
                room = open_room(LocalStorage(tmp_path / "store"), (writer, run), settings=SETTINGS)
                back_up(
                    room,
                    DictSource(source, contents_of(writer, run)),
                    progress=Silent(),
                    labels={"writer": str(writer), "run": str(run)},
                    group="both",
                )
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=write, args=(writer,)) for writer in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    room = open_room(storage, "read")
    snapshots = committed(room)
    assert len(snapshots) == 12
    for snapshot in snapshots:
        writer, run = int(snapshot.labels["writer"]), int(snapshot.labels["run"])
        assert restore(room, snapshot) == contents_of(writer, run)
    assert Checker(open_room(storage, "check"), progress=Silent()).run(3).findings == []


if __name__ == "__main__":
    print("begun", flush=True)
    back_up_here(sys.argv[1])
    print("done", flush=True)
