"""The promise of `strongroom.storage.base`, as tests that every adapter and every fake passes.

Rule: a new adapter inherits `StorageContract`, provides the fixture `storage` (empty, and its
own) and says in `capabilities` what `probe` has to find; nothing here knows any adapter.
"""

from __future__ import annotations

import itertools
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.errors import AlreadyExists, ObjectMissing
from strongroom.storage.base import Capabilities, Storage, check_name, is_name
from strongroom.storage.probe import probe

ALLOWED = string.ascii_letters + string.digits + "._-"
MIB = 1 << 20
BAD_NAMES = ("", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "./a", "a b", "ä", "a\n", "+tmp/x")

parts = st.text(ALLOWED, min_size=1, max_size=40).filter(lambda part: part not in (".", ".."))
names = st.lists(parts, min_size=1, max_size=4).map("/".join)
_serial = itertools.count()


def listing(storage: Storage, prefix: str = "") -> dict[str, int]:
    """Return name → size; a name that is listed twice fails."""
    found = list(storage.list(prefix))
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry.size for entry in found}


class StorageContract:
    """Inherit, override `storage`."""

    capabilities: ClassVar = Capabilities(
        put_if_absent=True, read_after_write=True, list_sorted=True
    )
    racy: ClassVar[str] = ""  # why racing creates prove nothing here; only for foreign doubles

    @pytest.fixture
    def storage(self) -> Storage:
        """Return an empty storage of the kind under test."""
        raise NotImplementedError

    # -- put and get -----------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 4095, 65537, 17 * MIB + 3])
    def test_what_was_put_is_what_is_got(self, storage: Storage, size: int) -> None:
        data = bytes(itertools.islice(itertools.cycle(range(251)), min(size, 70_000)))
        data = (data * (size // max(len(data), 1) + 1))[:size]
        storage.put("packs/ab/object", data)
        assert storage.get("packs/ab/object") == data
        assert isinstance(storage.get("packs/ab/object"), bytes)
        assert listing(storage) == {"packs/ab/object": size}

    def test_large_object_by_ranges(self, storage: Storage) -> None:
        data = b"".join(number.to_bytes(4, "big") for number in range(17 * MIB // 4))
        storage.put("large", data, if_absent=True)
        with ThreadPoolExecutor(4) as threads:
            steps = range(0, len(data), 5 * MIB)
            pieces = threads.map(lambda at: storage.get("large", offset=at, length=5 * MIB), steps)
            assert b"".join(pieces) == data

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_and_the_caller_may_reuse_it(self, storage: Storage, kind: type) -> None:
        kept = bytearray(b"0123456789")
        storage.put("a", kept if kind is bytearray else kind(bytes(kept)))
        storage.put("view", memoryview(kept)[2:5])
        kept[:] = b"xxxxxxxxxx"
        assert storage.get("a") == b"0123456789"
        assert storage.get("view") == b"234"

    @pytest.mark.parametrize("offset", [0, 1, 9, 10, 11, 5000])
    @pytest.mark.parametrize("length", [None, 0, 1, 9, 10, 11, 5000])
    def test_ranges_are_short_only_at_the_end(
        self, storage: Storage, offset: int, length: int | None
    ) -> None:
        data = b"0123456789"
        storage.put("a", data)
        end = None if length is None else offset + length
        assert storage.get("a", offset=offset, length=length) == data[offset:end]

    @pytest.mark.parametrize("offset", [0, 1])
    @pytest.mark.parametrize("length", [None, 0, 1])
    def test_ranges_of_an_empty_object(
        self, storage: Storage, offset: int, length: int | None
    ) -> None:
        storage.put("a", b"")
        assert storage.get("a", offset=offset, length=length) == b""

    @pytest.mark.parametrize("name", ["absent", "dir", "dir/absent", "dir/object/below"])
    @pytest.mark.parametrize("given_range", [{}, {"length": 0}, {"offset": 3, "length": 5}])
    def test_absent_objects_are_missing(
        self, storage: Storage, name: str, given_range: dict[str, int]
    ) -> None:
        storage.put("dir/object", b"x")
        with pytest.raises(ObjectMissing, match=name):
            storage.get(name, **given_range)

    def test_negative_ranges_are_a_mistake(self, storage: Storage) -> None:
        storage.put("a", b"0123456789")
        with pytest.raises(ValueError, match="negative"):
            storage.get("a", offset=-1)
        with pytest.raises(ValueError, match="negative"):
            storage.get("a", length=-1)

    # -- a name is written once --------------------------------------------------

    @pytest.mark.parametrize("second", [b"second", b"first", b""])
    def test_second_put_if_absent_is_refused(self, storage: Storage, second: bytes) -> None:
        storage.put("a/b", b"first", if_absent=True)
        with pytest.raises(AlreadyExists, match="a/b"):
            storage.put("a/b", second, if_absent=True)
        assert storage.get("a/b") == b"first"
        assert listing(storage) == {"a/b": 5}

    def test_put_if_absent_is_refused_after_a_plain_put(self, storage: Storage) -> None:
        storage.put("a", b"")
        with pytest.raises(AlreadyExists):
            storage.put("a", b"x", if_absent=True)
        assert storage.get("a") == b""

    def test_deleted_names_are_free_again(self, storage: Storage) -> None:
        storage.put("a", b"first", if_absent=True)
        storage.delete(["a"])
        storage.put("a", b"second", if_absent=True)
        assert storage.get("a") == b"second"

    def test_plain_put_replaces_the_whole_object(self, storage: Storage) -> None:
        storage.put("a", b"a long first object")
        storage.put("a", b"short")
        assert storage.get("a") == b"short"
        assert listing(storage) == {"a": 5}

    def test_exactly_one_of_many_racers_wins(self, storage: Storage) -> None:
        if self.racy:
            pytest.skip(self.racy)
        racers = 6
        for number in range(4):
            start = threading.Barrier(racers)
            contents = [bytes([65 + racer]) * (1000 + racer) for racer in range(racers)]

            def run(
                content: bytes, start: threading.Barrier = start, name: str = f"race/{number}"
            ) -> bool:
                start.wait(timeout=30)
                try:
                    storage.put(name, content, if_absent=True)
                except AlreadyExists:
                    return False
                return True

            with ThreadPoolExecutor(racers) as threads:
                won = list(threads.map(run, contents))
            assert won.count(True) == 1
            assert storage.get(f"race/{number}") == contents[won.index(True)]

    def test_readers_see_the_old_or_the_new_object_whole(self, storage: Storage) -> None:
        old, new = b"o" * 300_000, b"n" * 200_000
        storage.put("a", old)
        done = threading.Event()
        seen: set[bytes] = set()

        def read() -> None:
            while not done.is_set():
                seen.add(storage.get("a"))

        with ThreadPoolExecutor(3) as threads:
            readers = [threads.submit(read) for _ in range(2)]
            try:
                for _ in range(10):
                    storage.put("a", new)
                    storage.put("a", old)
            finally:
                done.set()
            for reader in readers:
                reader.result()
        assert seen <= {old, new}

    def test_many_threads_put_and_get(self, storage: Storage) -> None:
        def both(number: int) -> bool:
            data = number.to_bytes(2, "big") * 20_000
            storage.put(f"packs/{number % 7:02x}/{number}", data, if_absent=True)
            return storage.get(f"packs/{number % 7:02x}/{number}") == data

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(both, range(60)))
        assert len(listing(storage, "packs/")) == 60

    # -- listing -----------------------------------------------------------------

    def test_list_by_any_prefix(self, storage: Storage) -> None:
        kept = ["a", "packs/ab/1", "packs/ab/2", "packs/abc/3", "packs/b", "packs-2/x", "z/y/x/w"]
        for size, name in enumerate(kept):
            storage.put(name, b"x" * size)
        for prefix in (
            *("", "a", "p", "packs", "packs/", "packs/a", "packs/ab", "packs/ab/", "packs/ab/2"),
            *("packs/abc", "packs/b", "packs/b/", "packs-", "z/y/x", "z/y/x/w", "z/y/x/wv"),
            *("none", "none/", "none/n", "a/", "/", "//", "../", "a/../", ".", "packs//", "ä", " "),
        ):
            expected = {name: size for size, name in enumerate(kept) if name.startswith(prefix)}
            assert listing(storage, prefix) == expected, prefix

    def test_list_of_nothing(self, storage: Storage) -> None:
        assert listing(storage) == {}
        assert listing(storage, "packs/") == {}

    def test_list_order_is_as_announced(self, storage: Storage) -> None:
        for name in ("b", "a-1", "a/2", "a.3", "B", "a/1/x", "a/1-x", "9"):
            storage.put(name, b"")
        found = [entry.name for entry in storage.list("")]
        assert not self.capabilities.list_sorted or found == sorted(found)

    def test_list_of_more_than_one_page(self, storage: Storage) -> None:
        wanted = {f"many/{number:04x}": number % 5 for number in range(1030)}
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda one: storage.put(one[0], b"x" * one[1]), wanted.items()))
        assert listing(storage, "many/") == wanted
        storage.delete(iter(wanted))
        assert listing(storage) == {}

    def test_list_may_be_left_and_the_store_changed_meanwhile(self, storage: Storage) -> None:
        for number in range(20):
            storage.put(f"a/{number}", b"x")
        going = storage.list("a/")
        first = next(going)
        storage.delete([f"a/{number}" for number in range(20)])
        rest = [entry.name for entry in going]
        assert first.name not in rest
        assert len(rest) <= 19
        next(iter(storage.list("a/")), None)

    def test_modified_is_the_time_of_the_put(self, storage: Storage) -> None:
        storage.put("a", b"x")
        (entry,) = storage.list("a")
        assert entry.modified is None or abs(entry.modified - time.time()) < 120

    # -- deleting ----------------------------------------------------------------

    def test_delete(self, storage: Storage) -> None:
        for name in ("a", "b/c", "b/d", "e"):
            storage.put(name, b"x")
        storage.delete(iter(["b/c", "absent", "a", "b/absent", "no/such/place", "a"]))
        assert listing(storage) == {"b/d": 1, "e": 1}
        storage.delete([])
        storage.delete(["absent"])
        assert listing(storage) == {"b/d": 1, "e": 1}
        with pytest.raises(ObjectMissing):
            storage.get("a")

    def test_delete_of_a_directory_deletes_nothing(self, storage: Storage) -> None:
        storage.put("a/b", b"x")
        storage.delete(["a/b/c"])
        assert listing(storage) == {"a/b": 1}

    # -- names -------------------------------------------------------------------

    @pytest.mark.parametrize(
        "name",
        [
            *(
                ALLOWED,
                "..a",
                "a..",
                "...",
                ".a/-b/_c/z",
                "-",
                "x" * 255,
                "/".join(["y" * 127] * 4),
            ),
            *("A/a", "CON", "a.tmp", "tmp/a", "lost-found", "SlowDown/InternalError"),
        ],
    )
    def test_names_of_every_allowed_form(self, storage: Storage, name: str) -> None:
        storage.put(name, b"named", if_absent=True)
        assert storage.get(name) == b"named"
        assert listing(storage) == {name: 5}
        assert listing(storage, name) == {name: 5}
        storage.delete([name])
        assert listing(storage) == {}

    @pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 256, "/".join(["y" * 128] * 4)])
    def test_malformed_names_are_a_mistake(self, storage: Storage, name: str) -> None:
        for call in (
            lambda: storage.put(name, b""),
            lambda: storage.get(name),
            lambda: storage.delete([name]),
        ):
            with pytest.raises(ValueError, match="not an object name"):
                call()
        assert listing(storage) == {}

    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
        ],
    )
    @given(name=names, data=st.binary(max_size=200), cut=st.integers(0, 200))
    def test_any_name_any_bytes(self, storage: Storage, name: str, data: bytes, cut: int) -> None:
        name = f"h{next(_serial)}/{name}"
        storage.put(name, data, if_absent=True)
        assert storage.get(name) == data
        assert storage.get(name, offset=cut) == data[cut:]
        assert listing(storage, name) == {name: len(data)}
        assert listing(storage, name[: cut % len(name)]).get(name) == len(data)
        storage.delete([name])
        assert listing(storage, name) == {}

    # -- the rest ----------------------------------------------------------------

    def test_probe_finds_what_is_announced_and_cleans_up(self, storage: Storage) -> None:
        storage.put("kept", b"x")
        found = probe(storage, token="0123456789abcdef")
        if self.racy:
            found = replace(found, put_if_absent=self.capabilities.put_if_absent)
        assert found == self.capabilities
        assert listing(storage) == {"kept": 1}

    def test_free_space_and_close(self, storage: Storage) -> None:
        free = storage.free_space()
        assert free is None or free > 0
        storage.close()
        storage.close()

    def test_url_is_an_address_without_secrets(self, storage: Storage) -> None:
        assert storage.url
        assert "secret" not in storage.url
        assert "secret" not in repr(storage)


@given(st.text(max_size=12))
def test_names_are_well_formed_or_refused(text: str) -> None:
    """`is_name`, `check_name` and the rule as it is written agree."""
    pieces = text.split("/")
    rule = all(
        piece and piece not in (".", "..") and all(sign in ALLOWED for sign in piece)
        for piece in pieces
    )
    assert is_name(text) is rule
    if rule:
        assert check_name(text) == text
