"""What is sealed is opened again before it is put: every frame, or every n-th where so configured."""

from __future__ import annotations

import pytest

from rooms import QUIET, committed, new_room, noise, restore, take
from strongroom.errors import Damaged
from strongroom.format.frame import FrameSealer
from strongroom.repository.seams import Settings
from strongroom.storage.memory import MemoryStorage

FILES = {b"big": noise("big", 12 << 20)}
EVERY_FOURTH = Settings(sealers=1, putters=1, pack_size=QUIET.pack_size, reopen_every=4)


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of the frames that a bad machine seals wrong; those that were sealed are taken out."""
    numbers: set[int] = set()
    seal_into = FrameSealer.seal_into

    def corrupt(self: FrameSealer, packed: bytes, sequence: int, into: memoryview) -> None:
        seal_into(self, packed, sequence, into)
        if sequence in numbers:
            numbers.remove(sequence)
            into[len(into) // 2] ^= 1

    monkeypatch.setattr(FrameSealer, "seal_into", corrupt)
    return numbers


@pytest.mark.parametrize("number", range(6))
def test_every_frame_is_opened_again_by_default(spoiled: set[int], number: int) -> None:
    spoiled.add(number)
    room = new_room(MemoryStorage())
    with pytest.raises(Damaged):
        take(room, "vault", FILES)
    assert not spoiled, "a frame of that number was sealed"
    assert committed(room) == []


@pytest.mark.parametrize("number", [0, 4, 8])
def test_a_sampled_frame_is_opened_again(spoiled: set[int], number: int) -> None:
    spoiled.add(number)
    room = new_room(MemoryStorage(), settings=EVERY_FOURTH)
    with pytest.raises(Damaged):
        take(room, "vault", FILES)
    assert not spoiled
    assert committed(room) == []


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_frame_between_the_samples_is_found_by_who_reads_it(
    spoiled: set[int], number: int
) -> None:
    spoiled.add(number)
    room = new_room(MemoryStorage(), settings=EVERY_FOURTH)
    take(room, "vault", FILES)
    assert not spoiled
    (snapshot,) = committed(room)
    with pytest.raises(Damaged):
        restore(room, snapshot)
