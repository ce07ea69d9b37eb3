"""A compressor, cipher or memory that corrupts never ends in a green run; no nonce is used twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rooms import DictSource, committed, new_room, noise, open_room, prune, restore, take
from strongroom.errors import Damaged, StrongroomError
from strongroom.format import frame, record
from strongroom.format import keyset as keysets
from strongroom.format.frame import FrameSealer
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.repository import session as sessions
from strongroom.repository.seams import Settings
from strongroom.storage.base import Storage
from strongroom.storage.faulty import Crash, Fault, FaultyStorage, Plan
from strongroom.storage.memory import MemoryStorage

FILES = {b"%02d" % number: noise(number, 300_000) for number in range(12)}


def every(number: int) -> Callable[[], bool]:
    """True at each `number`-th call."""
    calls = iter(range(1, 1 << 30))
    return lambda: next(calls) % number == 0


def spoil(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("each", [1, 2, 3, 5])
@pytest.mark.parametrize("part", ["compressor", "cipher", "signature", "session key"])
def test_no_run_ends_green(monkeypatch: pytest.MonkeyPatch, part: str, each: int) -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    kept = take(room, "vault", {b"kept": noise("kept", 9000)}).snapshot
    with monkeypatch.context() as patch:
        CORRUPTIONS[part](patch, every(each))
        ended = green(storage)
    assert restore(open_room(storage, "read"), kept) == {b"kept": noise("kept", 9000)}
    found = committed(open_room(storage, "list"))
    assert len(found) == 1 + ended
    if ended:  # fewer calls than `each`: then nothing was spoilt
        (new,) = [snapshot for snapshot in found if snapshot != kept]
        assert restore(open_room(storage, "read again"), new) == FILES


def green(storage: Storage) -> bool:
    settings = Settings(sealers=2, putters=1, pack_size=1 << 20)
    try:
        take(open_room(storage, "corrupt", settings=settings), "vault", FILES)
    except (Damaged, ValueError) as fault:
        assert not isinstance(fault, StrongroomError) or fault.exit_status == 9
        return False
    return True


def corrupt_compressor(patch: pytest.MonkeyPatch, due: Callable[[], bool]) -> None:
    inner = frame.zstd.ZstdCompressor

    class Compressor:
        FLUSH_FRAME = inner.FLUSH_FRAME

        def __init__(self, **options: int) -> None:
            self._inner = inner(**options)

        def compress(self, data: bytes, mode: int) -> bytes:
            return self._inner.compress(spoil(bytes(data)) if due() else data, mode=mode)

    patch.setattr(frame.zstd, "ZstdCompressor", Compressor)


def corrupt_cipher(patch: pytest.MonkeyPatch, due: Callable[[], bool]) -> None:
    class Cipher:
        def __init__(self, key: bytes) -> None:
            self._inner = AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
            sealed = self._inner.encrypt(nonce, data, context)
            return spoil(sealed) if due() else sealed

        def encrypt_into(self, nonce: bytes, data: bytes, context: bytes, into: memoryview) -> None:
            into[:] = self.encrypt(nonce, data, context)

        def decrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
            return self._inner.decrypt(nonce, data, context)

    patch.setattr(frame, "AESGCM", Cipher)
    patch.setattr(record, "AESGCM", Cipher)


def corrupt_signature(patch: pytest.MonkeyPatch, due: Callable[[], bool]) -> None:
    sign = keysets.sign

    def signing(*what: object) -> bytes:
        signature = sign(*what)  # type: ignore[arg-type]
        return spoil(signature) if due() else signature

    patch.setattr(keysets, "sign", signing)


def corrupt_session_key(patch: pytest.MonkeyPatch, due: Callable[[], bool]) -> None:
    seal = keysets.seal_session_key

    def sealing(*what: object) -> bytes:
        sealed = seal(*what)  # type: ignore[arg-type]
        return spoil(sealed) if due() else sealed

    patch.setattr(keysets, "seal_session_key", sealing)


CORRUPTIONS = {
    "compressor": corrupt_compressor,
    "cipher": corrupt_cipher,
    "signature": corrupt_signature,
    "session key": corrupt_session_key,
}


@pytest.mark.parametrize("part", CORRUPTIONS)
def test_the_corruptions_do_happen(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    storage = MemoryStorage()
    new_room(storage)
    CORRUPTIONS[part](monkeypatch, every(1))
    assert not green(storage)


def test_a_frame_that_is_one_byte_longer_than_its_chunks_is_not_stored() -> None:
    """Places in a frame follow from the lengths before: one wrong length spoils all behind it."""
    storage = MemoryStorage()
    session = new_room(storage).begin("vault", progress=Silent())
    lane = session.lane()
    lane.put_small([b"one", b"two"])
    lane._data._lengths[0] += 1
    with pytest.raises(AssertionError):
        lane.flush()
    session.abandon()


# -- I5 ----------------------------------------------------------------------------------------


class Watching:
    """An AES-GCM that remembers under which key it used which nonce."""

    seen: dict[tuple[bytes, bytes], tuple[bytes, bytes]]
    twice: list[tuple[bytes, bytes]]

    def __init__(self, key: bytes) -> None:
        self._key, self._inner = bytes(key), AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
        use = self._key, bytes(nonce)
        sealed = self._inner.encrypt(nonce, data, context)
        if use in self.seen:
            self.twice.append(use)
        self.seen[use] = (bytes(context), sealed)
        return sealed

    def encrypt_into(self, nonce: bytes, data: bytes, context: bytes, into: memoryview) -> None:
        into[:] = self.encrypt(nonce, data, context)

    def decrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
        return self._inner.decrypt(nonce, data, context)


def test_no_key_and_nonce_come_twice_in_a_whole_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs, reruns, crashes at every operation, resumption, two writers, a prune (I5)."""
    monkeypatch.setattr(sessions, "WINDOW", 128 * 1024)
    Watching.seen, Watching.twice = {}, []
    monkeypatch.setattr(frame, "AESGCM", Watching)
    monkeypatch.setattr(record, "AESGCM", Watching)
    storage = MemoryStorage()
    new_room(storage)
    for number in range(3):
        take(open_room(storage, number), "vault", {**FILES, b"new": noise(("n", number), 9000)})
    for at in range(1, 20):
        crashing = FaultyStorage(storage.fork(), Plan(Fault.CRASH_AFTER, at))
        files = {b"crash": noise("crash", 50_000)}
        try:
            back_up(open_room(crashing, ("crash", at)), DictSource("v", files), progress=Silent())
        except Crash:
            take(open_room(storage.fork(), ("resumed", at)), "vault", files)
    storage.delete([committed(open_room(storage, "list"))[0].name])
    prune(open_room(storage, "prune"))
    both = [open_room(storage, seed).begin("vault", progress=Silent()) for seed in "xy"]
    for session in both:
        taken = DictSource("vault", FILES).back_up(session, progress=Silent())
        session.commit("vault", "files", taken, labels={})
    assert len(Watching.seen) > 250
    assert Watching.twice == []
    assert FrameSealer is frame.FrameSealer
