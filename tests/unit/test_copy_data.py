"""The loop that receives a copy without the GIL, over functions that stand for libpq's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from strongroom import kernel
from strongroom.postgres import libpq

pytestmark = pytest.mark.skipif(not kernel.COMPILED, reason="built without a compiler")

_GET = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int
)
_CONSUME = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Fake:
    """A connection whose messages are these; None is "nothing yet", a number what get returns."""

    def __init__(self, *script: bytes | int | None, consumes: bool = True) -> None:
        self.script, self.consumes = list(script), consumes
        self.held: dict[int, object] = {}
        self.calls = _GET(self._get), _CONSUME(lambda _: int(self.consumes)), _FREE(self._free)
        self.read, self.write = os.pipe()
        os.write(self.write, b"x")  # there is always something to read

    def _get(self, connection: int, into: ctypes._Pointer[ctypes.c_void_p], later: int) -> int:
        assert (connection, later) == (4711, 1)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, bytes):
            buffer = ctypes.create_string_buffer(step, len(step))
            into[0] = ctypes.addressof(buffer)
            self.held[ctypes.addressof(buffer)] = buffer
            return len(step)
        return step or 0

    def _free(self, pointer: int) -> None:
        del self.held[pointer]

    def take(
        self, size: int, *, typed: bool = True, wait: int = 0
    ) -> tuple[bytes, bytes, object, int]:
        into = bytearray(size)
        addresses = [ctypes.cast(call, ctypes.c_void_p).value for call in self.calls]
        used, rest, other, state = kernel.copy_data(
            (*addresses, 4711), self.read, into, typed, wait
        )
        assert not self.held  # every message was given back
        return bytes(into[:used]), rest, other, state


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    made: list[Fake] = []
    yield made
    for fake in made:
        os.close(fake.read)
        os.close(fake.write)


def test_messages_are_laid_back_to_back_and_what_does_not_fit_is_told(fakes: list[Fake]) -> None:
    fake = Fake(b"dabc", b"ddef", None, b"dghij")
    fakes.append(fake)
    assert fake.take(8) == (b"abcdefgh", b"ij", None, kernel.COPY_MORE)


def test_exactly_full_leaves_no_rest(fakes: list[Fake]) -> None:
    fakes.append(fake := Fake(b"dabc", b"dx", b"dlater"))
    assert fake.take(4) == (b"abcx", b"", None, kernel.COPY_MORE)
    assert fake.take(5) == (b"later", b"", None, kernel.COPY_MORE)


def test_a_message_that_is_no_data_ends_it(fakes: list[Fake]) -> None:
    fakes.append(fake := Fake(b"dabc", b"nbase.tar\0\0"))
    assert fake.take(8) == (b"abc", b"", b"nbase.tar\0\0", kernel.COPY_MORE)
    fakes.append(plain := Fake(b"nabc", -1))
    assert plain.take(8, typed=False) == (b"nabc", b"", None, kernel.COPY_ENDED)


def test_an_empty_data_message_is_passed_over(fakes: list[Fake]) -> None:
    fakes.append(fake := Fake(b"d", b"dab", -1))
    assert fake.take(8) == (b"ab", b"", None, kernel.COPY_ENDED)


def test_nothing_in_time_the_end_and_a_fault_are_told_apart(fakes: list[Fake]) -> None:
    fakes.append(late := Fake(b"dab"))
    os.read(late.read, 1)
    assert late.take(8, wait=1) == (b"ab", b"", None, kernel.COPY_NOTHING)
    fakes.append(ended := Fake(b"dab", -1))
    assert ended.take(8) == (b"ab", b"", None, kernel.COPY_ENDED)
    fakes.append(failed := Fake(b"dab", -2))
    assert failed.take(8)[3] == kernel.COPY_FAILED
    fakes.append(lost := Fake(None, consumes=False))
    assert lost.take(8)[3] == kernel.COPY_FAILED


def test_the_library_of_psycopg_is_found() -> None:
    import psycopg.pq  # noqa: PLC0415

    if psycopg.pq.__impl__ == "python":
        pytest.skip("psycopg[binary] is not installed")
    found = libpq._functions()
    assert found is not None
    assert all(found)
